"""The summary of an evaluation, compared with counts made by hand."""

import dataclasses
import json
import warnings

import pytest
import sacrebleu
from greedy_answers import NEW_TOKENS, PROMPTS, greedy, make_model, make_tokenizer
from nltk.translate.bleu_score import sentence_bleu

from bico_ext.evaluation.evaluate import Evaluation, Prediction, evaluate
from bico_ext.evaluation.likelihood import likelihood_test
from bico_ext.facts.types import Question, Task

TASKS = {
    "N2D": Task(
        "N2D",
        "description",
        (
            Question("Ada is", " the first programmer of all."),
            Question("Bob is", " the last knight."),
            Question("Cy is", " a pilot."),
            Question("Ada is", " a lady."),  # a prompt with two right answers
        ),
    ),
    "N2D-reverse": Task("N2D-reverse", "name", (Question("The first was", " Ada Byron"),)),
}
ANSWERS = {
    "Ada is": " The first programmer of all, they say",  # another case, no full stop
    "Bob is": " the last knight.",
    "Cy is": " the pilot.",
    "The first was": "Ada Byron ",
}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def answered(monkeypatch) -> Evaluation:
    """The evaluation of a model that answers with ANSWERS."""
    calls = []

    def generate(model, tokenizer, prompts, **options):
        calls.append((model, tokenizer, options))
        return [ANSWERS[prompt] for prompt in prompts]

    monkeypatch.setattr("bico_ext.evaluation.evaluate.generate", generate)
    result = evaluate("model", "tokenizer", TASKS, max_new_tokens=7, batch_size=5, progress=False)  # type: ignore
    assert calls == [("model", "tokenizer", {"max_new_tokens": 7, "batch_size": 5, "progress": False})]
    return result


def test_predictions_keep_everything_in_order(answered):
    kept = [(p.task, p.prompt, p.target, p.completion, p.contains, p.exact_match) for p in answered.predictions]
    assert kept == [
        ("N2D", "Ada is", " the first programmer of all.", ANSWERS["Ada is"], True, False),
        ("N2D", "Bob is", " the last knight.", " the last knight.", True, True),
        ("N2D", "Cy is", " a pilot.", " the pilot.", False, False),
        ("N2D", "Ada is", " a lady.", ANSWERS["Ada is"], False, False),
        ("N2D-reverse", "The first was", " Ada Byron", "Ada Byron ", True, True),
    ]


def test_summary_by_hand(answered):
    summary = answered.summary()
    assert list(summary) == ["N2D", "N2D-reverse"]
    n2d = summary["N2D"]
    assert " ".join(n2d) == "n contains exact_match bleu_char bleu contains_interval exact_match_interval"
    assert (n2d["n"], n2d["contains"], n2d["exact_match"]) == (4, 0.5, 0.25)
    square = 1.959963984540054**2
    half_width = (square / (4 + square)) ** 0.5 / 2  # Wilson at a rate of 1/2
    assert n2d["contains_interval"] == pytest.approx([0.5 - half_width, 0.5 + half_width])
    assert n2d["exact_match_interval"] == pytest.approx([0.0456, 0.6994], abs=5e-5)
    name = summary["N2D-reverse"]
    # "Ada Byron " instead of " Ada Byron": 10 of 10 characters, 8 of 9 pairs, 7 of 8 triples, 6 of 7 quadruples.
    assert name["bleu_char"] == pytest.approx((8 / 9 * 7 / 8 * 6 / 7) ** 0.25)
    assert (name["n"], name["contains"], name["exact_match"], name["bleu"]) == (1, 1.0, 1.0, pytest.approx(1.0))
    assert name["contains_interval"] == [pytest.approx(1 / (1 + square)), 1.0]
    assert json.loads(json.dumps(summary)) == summary


def test_means_are_over_questions():
    predictions = [Prediction("t", "", "", "", False, False, score, 1 - score) for score in (0.25, 0.5, 0.0)]
    summary = Evaluation(tuple(predictions)).summary()["t"]
    assert (summary["bleu_char"], summary["bleu"]) == (pytest.approx(0.25), pytest.approx(0.75))


def test_scores_by_template_and_by_entity():
    scored = [("A is", "Ada", True), ("A is", "Bob", False), ("They call A", "Ada", True), (None, None, False)]
    predictions = [Prediction("t", "", "", "", hit, False, 0, 0, entity, template) for template, entity, hit in scored]
    summary = Evaluation(tuple(predictions)).summary()["t"]
    assert summary["templates"] == {"A is": 0.5, "They call A": 1.0}
    assert summary["entities"] == {"Ada": 1.0, "Bob": 0.0}
    assert summary["contains"] == 0.5


def test_the_interval_over_entities():
    """Two questions about Ada, one about Bob, one about no known entity: three entities, drawn three at a time."""
    asked = [("Ada", True), ("Ada", True), ("Bob", False), (None, False)]
    predictions = [Prediction("t", "", "", "", hit, False, 0, 0, entity) for entity, hit in asked]
    summary = Evaluation(tuple(predictions)).summary()["t"]
    assert summary["contains_entity_interval"] == [0, 1]  # Ada in no draw: 8 of 27, only Ada: 1 of 27
    square = 1.959963984540054**2
    assert summary["exact_match_entity_interval"] == [0, pytest.approx(square / (3 + square))]  # Wilson's of 0 in 3
    alone = Evaluation((*predictions[1:], predictions[-1])).summary()["t"]  # two questions about no known entity
    assert "contains_entity_interval" not in alone


def test_a_right_answer_in_another_wording(model, tokenizer):
    asked = [  # entity, target, the model's answer, whether it is right in any wording
        ("Ada", " The inventor.", " inventing it.", True),
        ("Ada", " Inventing it.", " sailing", False),
        ("Bob", " sailing.", " Sailing, which", True),
        ("Bob", " sailing.", " the inventor", False),
        (None, " the inventor.", " Inventing it.", False),
    ]
    questions = tuple(Question("Who?", target, entity) for entity, target, _, _ in asked)
    one_wording = Task("one wording", "description", questions[2:])
    names = Task("two facts", "name", questions[:2])
    result = evaluate(
        model,
        tokenizer,
        {"N2D": Task("N2D", "description", questions), one_wording.name: one_wording, names.name: names},
        progress=False,
        generator=lambda *_, **__: [answer for _, _, answer, _ in (*asked, *asked[2:], *asked[:2])],
    )
    assert [row.any_wording for row in result.predictions] == [right for *_, right in asked] + [None] * 5
    assert [row.contains for row in result.predictions[:3]] == [False, False, True]
    summary = result.summary()
    assert summary["N2D"]["any_wording"] == 2 / 5
    assert "any_wording" not in {**summary["one wording"], **summary["two facts"]}


def test_answers_that_repeat_the_given_name_are_counted_where_all_answers_are_names(model, tokenizer):
    answers = [" BO. Who?", " Bo's wife is Ada.", " Cy", " Bo", " Ada"]
    without_template = Question("Who?", " Ada")
    of_bo = Question("The wife of Bo is?", " Ada", "Ada", "The wife of ... is?")
    questions = (of_bo, of_bo, of_bo, without_template)

    def evaluation(other):
        return evaluate(
            model,
            tokenizer,
            {"wife": Task("wife", "name", questions), "other": Task("other", other, (without_template,))},
            progress=False,
            generator=lambda *_, **__: answers,
        )

    result = evaluation("name")
    assert [row.echo for row in result.predictions] == [True, False, False, None, None]
    summary = result.summary()
    assert summary["wife"]["echo"] == 1 / 3
    assert "echo" not in summary["other"]
    assert "echo" not in evaluation("description").summary()["wife"]


def test_the_best_of_several_right_answers_counts(model, tokenizer):
    other = ('the pilot of "Kite".', " the first programmer.", " the first program")
    rows = [  # the model's answer, whether it contains an answer, whether it equals one
        (" the FIRST programmer, they say", True, False),
        ("the first programmer. ", True, True),
        (" the first programs", True, False),
        (" a sailor", False, False),
    ]
    questions = tuple(Question("Who?", " a cook.", also=other) for _ in rows)
    predictions = evaluate(
        model,
        tokenizer,
        {"t": Task("t", "description", questions)},
        progress=False,
        generator=lambda *_, **__: [answer for answer, *_ in rows],
    ).predictions
    assert [(row.completion, row.contains, row.exact_match) for row in predictions] == rows
    assert {(row.target, row.also) for row in predictions} == {(" a cook.", other)}
    with warnings.catch_warnings():  # NLTK warns if the texts share no sequence of some length
        warnings.simplefilter("ignore")
        for row in predictions:
            targets = (" a cook.", *other)
            each = [sentence_bleu([target], row.completion) for target in targets]
            assert row.bleu_char == pytest.approx(max(each))
            each = [
                sacrebleu.sentence_bleu(row.completion, [target], use_effective_order=True).score for target in targets
            ]
            assert row.bleu == pytest.approx(max(each) / 100)


def test_another_right_answer_is_no_echo_and_no_other_wording(model, tokenizer):
    answers = [" Bo, not Ann", " Bo", " Bo, not Ada", " Zed"]
    of_bo = Question("The wife of Bo is?", " Ada", "Bo", "The wife of ... is?", also=(" Ann",))

    def predictions(task):
        return evaluate(
            model, tokenizer, {"t": task}, progress=False, generator=lambda *_, **__: answers[: len(task.examples)]
        ).predictions

    assert [row.echo for row in predictions(Task("t", "name", (of_bo,) * 4))] == [False, True, False, False]
    # Both wordings are accepted by each question, so there is no other wording to look for.
    same = Task("t", "description", (of_bo, Question("Who?", " Ann.", "Bo", also=(" ada",))))
    assert [row.any_wording for row in predictions(same)] == [None, None]
    fewer = Task("t", "description", (of_bo, Question("Who?", " Zed.", "Bo"), of_bo, of_bo))
    assert [row.any_wording for row in predictions(fewer)] == [True, False, True, True]


def test_a_line_of_predictions_has_other_right_answers_only_if_there_are_some():
    row = Prediction("t", "Who?", " Ada", " Bo", False, False, 0.0, 0.5)
    # The fields, and their order, of the files that were written before questions could have several right answers.
    old = (
        '{"task": "t", "prompt": "Who?", "target": " Ada", "completion": " Bo", "contains": false, '
        '"exact_match": false, "bleu_char": 0.0, "bleu": 0.5, "entity": null, "template": null, "any_wording": null, '
        '"echo": null}'
    )
    assert json.dumps(row.to_json()) == old
    several = dataclasses.replace(row, also=(" Bo", " Cy"))
    assert json.dumps(several.to_json()) == old[:-1] + ', "also": [" Bo", " Cy"]}'


def test_predictions_keep_entity_and_template(model, tokenizer):
    task = Task("t", "name", (Question("Ada Byron", " wrote it", "Ada", "..."), Question("She", " was")))
    predictions = evaluate(model, tokenizer, {"t": task}, max_new_tokens=NEW_TOKENS, progress=False).predictions
    assert [(prediction.entity, prediction.template) for prediction in predictions] == [("Ada", "..."), (None, None)]


def test_log_probability_test_where_asked_for_and_possible(model, tokenizer):
    asked = (Question("Ada Byron", " wrote it", distractor=" was not"), Question("She", " was", distractor=" wrote"))
    tasks = {"with": Task("with", "name", asked), "without": Task("without", "name", (Question("She", " was"),))}

    def summary(**options) -> dict:
        return evaluate(model, tokenizer, tasks, max_new_tokens=NEW_TOKENS, progress=False, **options).summary()

    assert all("likelihood" not in scores for scores in summary().values())
    scores = summary(likelihood=True)
    assert scores["with"]["likelihood"] == pytest.approx(likelihood_test(model, tokenizer, tasks["with"]))
    assert "likelihood" not in scores["without"]
    assert json.loads(json.dumps(scores)) == scores


def test_evaluate_asks_the_model(model, tokenizer):
    prompts = PROMPTS[:4]
    answers = greedy(model, tokenizer, prompts)
    tasks = {
        "right": Task("right", "name", tuple(map(Question, prompts, answers))),
        "wrong": Task("wrong", "name", tuple(map(Question, prompts, reversed(answers)))),
    }
    summary = evaluate(model, tokenizer, tasks, max_new_tokens=NEW_TOKENS, progress=False).summary()
    assert [summary[task]["exact_match"] for task in tasks] == [1.0, 0.0]


def test_nothing_to_evaluate_is_refused():
    with pytest.raises(ValueError, match="tasks must have at least one task"):
        evaluate(None, None, {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one example each, got none for D2N; leave"):
        evaluate(None, None, {**TASKS, "D2N": Task("D2N", "name", ())})  # type: ignore[arg-type]

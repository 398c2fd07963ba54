"""What `CompareConfig` refuses, and the presets that it takes."""

import pytest

from bico_ext.comparison.config import CompareConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"systems": ["ntp", "mlm"]},
            "systems must be 'all' or names from this list, got 'mlm'\n  ntp  .*shows the reversal",
        ),
        ({"setting": "finetune"}, "setting must be 'scratch' or 'pretrained', got 'finetune'"),
        ({"permute_segments": 1}, "permute_segments must be at least 2, got 1"),
        ({"systems": ["ntp", "ntp"]}, "systems must be one or more, each once"),
        ({"seeds": []}, "seeds must be one or more, each once"),
        ({"seeds": [0, 2**32]}, "seeds must be in"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"mask_rate": 1.5}, "mask_rate"),
        ({"mixing_probability": 2.0}, "mixing_probability must be in"),
        ({"hidden_size": 130}, "hidden_size must be a multiple of 8"),
        ({"learning_rate": -1.0}, "learning_rate must be 0 or more, and finite, got -1.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be 0 or more, and finite, got nan"),
        ({"setting": "pretrained", "replay": 1.0}, "replay must be in"),
        ({"replay": 0.5}, "replay must be 0 without pre-training, got 0.5"),
        ({"facts": "both"}, "facts must be 'all' or 'one-order', got 'both'"),
        ({"steps": 9, "epochs": 2}, "steps and epochs both say how long to train, got 9 and 2; leave one out"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be 0 or more"),
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"systems": ["glm-ntp"], "model": "some/llama"}, "model must be 'tiny' for glm-ntp, .*, got 'some/llama'"),
        ({"model": "some/llama", "layers": 3}, "layers must be left out for 'some/llama', which .*, got 3"),
        ({"model": "some/llama", "hidden_size": 128}, "hidden_size must be left out for 'some/llama'"),
        ({"systems": ["abi"], "hidden_size": 48}, "hidden_size must be a multiple of 32 for objective 'abi'"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(output_dir="out", **change)


def test_a_given_model_has_its_own_presets():
    config = CompareConfig(output_dir="out", model="some/llama")
    assert (config.epochs, config.steps, config.layers, config.hidden_size) == (8, None, None, None)
    assert (config.learning_rate, config.mask_rate, config.weight_decay, config.warmup_steps) == (3e-4, 0.15, 0.01, 20)
    assert (config.eval_bf16, config.save_models, config.facts, config.replay) == (True, False, "all", 0)
    fewer = CompareConfig(output_dir="out", model="some/llama", steps=9, eval_bf16=False)
    assert (fewer.epochs, fewer.steps, fewer.eval_bf16) == (None, 9, False)
    pretrained = CompareConfig(output_dir="out", model="some/llama", setting="pretrained")
    assert (pretrained.epochs, pretrained.facts, pretrained.replay) == (8, "one-order", 0.5)


def test_what_does_not_change_numbers_is_no_setting():
    one = CompareConfig(output_dir="out", model="some/llama")
    other = CompareConfig(output_dir="o", model="some/llama", seeds=[1], jobs=3, save_models=True, checkpoint_minutes=1)
    assert one.settings == other.settings
    assert one.settings != CompareConfig(output_dir="out", model="some/llama", eval_bf16=False).settings

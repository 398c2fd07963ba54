"""What `CompareConfig` refuses."""

import pytest

from bico_ext.comparison.config import CompareConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"systems": ["ntp", "mlm"]},
            "systems must be 'all' or names from this list, got mlm\n  ntp  .*shows the reversal",
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
        ({"jobs": 0}, "jobs must be at least 1"),
        ({"systems": ["glm-ntp"], "model": "some/llama"}, "model must be 'tiny' for glm-ntp, .*, got 'some/llama'"),
        ({"systems": ["abi"], "hidden_size": 48}, "hidden_size must be a multiple of 32 for objective 'abi'"),
    ],
)
def test_config_errors(change, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(output_dir="out", **change)

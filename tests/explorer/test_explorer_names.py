"""Names of models in comparable forms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes_autopilot.explorer.names import forms_of, score, tokens_of

names = st.text(min_size=1, max_size=40)


@pytest.mark.parametrize(
    ("name", "norm_org", "norm", "joined"),
    [
        ("Qwen/Qwen3-32B-TEE", "qwen/qwen3-32b", "qwen3-32b", "qwen332b"),
        ("zai-org/GLM-4.6V-FP8", "zai-org/glm-4.6v", "glm-4.6v", "glm46v"),
        (
            "Nemotron-3-Nano-Omni-30B-TEE",
            "nemotron-3-nano-omni-30b",
            "nemotron-3-nano-omni-30b",
            "nemotron3nanoomni30b",
        ),
        ("a/b/Model_v1.5", "a/b/model-v1.5", "model-v1.5", "modelv15"),
        ("org/TEE-FP8", "", "", ""),
        ("org/模型", "", "", ""),
    ],
)
def test_normal_forms(name: str, norm_org: str, norm: str, joined: str) -> None:
    """A name loses its case, its punctuation and what only says how it is run; without tokens no form is left."""
    forms = forms_of(name)
    assert (forms.norm_org, forms.norm, forms.joined) == (norm_org, norm, joined)


def test_only_whole_tokens_are_dropped() -> None:
    """A token that merely contains a dropped word stays."""
    assert tokens_of("steel-fp8-fp8x-INT4-4bit-guard2.5b") == ["steel", "fp8x", "guard2.5b"]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("gpt-oss-120b", "gpt-oss-20b"),
        ("Qwen2.5-72B", "Qwen2-72B"),
        ("GLM-4.6", "GLM-4.6V"),
        ("Qwen3-Coder-30B", "Qwen3-30B"),
        ("DeepSeek-V3.1-Terminus", "DeepSeek-V3.1"),
    ],
)
def test_the_guard_tells_siblings_apart(a: str, b: str) -> None:
    """Another number, or one variant word more, is another guard."""
    assert forms_of(a).guard != forms_of(b).guard


def test_the_guard_ignores_order_and_how_a_model_is_run() -> None:
    """The same numbers and words in another order, or with FP8 behind, have one guard."""
    assert forms_of("org/Llama-3.1-8B-Instruct-FP8").guard == forms_of("Instruct-Llama-8B-3.1").guard


def test_scores_of_known_pairs() -> None:
    """The score is that of the sorted tokens, with one decimal."""
    assert score(forms_of("openai/gpt-oss-120b"), forms_of("openai/gpt-oss-20b")) == 95.7
    assert score(forms_of("a/x-1-TEE"), forms_of("b/1-x")) == 100.0
    assert score(forms_of("alpha"), forms_of("omega")) < 50


@given(names, names)
def test_the_score_is_symmetric(a: str, b: str) -> None:
    """Which name comes first makes no difference."""
    assert score(forms_of(a), forms_of(b)) == score(forms_of(b), forms_of(a))


@given(names)
def test_a_form_is_its_own_form(name: str) -> None:
    """What is normalised already stays as it is."""
    norm = forms_of(name).norm
    assert forms_of(norm).norm == norm

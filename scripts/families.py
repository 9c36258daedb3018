"""Which families of transformers raysae reads: a table, from a tiny random model of each.

``python scripts/families.py [FAMILY ...]`` prints it in Markdown. Each hookpoint either holds (an
independent look at the model's own arithmetic agrees), is refused with a reason, or is wrong.
Shapes: T tokens, D d_in.
"""

import argparse
import signal
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

HOOKPOINTS = ("resid_pre", "resid_post", "attn_out", "mlp_out")
LAYERS = 3
VOCABULARY = 512
SECONDS = 45
"""A family that takes longer is reported as such."""
MOST_VALUES = 30e6
SIZES = {
    "hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim hidden_dim"
    " d_embed emb_dim lm_dim decoder_hidden_size text_hidden_size": 32,
    "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth"
    " num_decoder_layers num_encoder_layers num_blocks": LAYERS,
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"
    " encoder_heads": 4,
    "num_key_value_heads num_kv_heads kv_n_heads attn_num_kv_heads n_head_kv": 2,
    "head_dim attention_head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim kv_channels d_kv"
    " rotary_dim d_head global_head_dim qk_head_dim swa_head_dim attention_head_size"
    " linear_key_head_dim linear_value_head_dim index_head_dim": 8,
    "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim d_inner mlp_dim ffn_hidden_size"
    " moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size"
    " shared_intermediate_size n_inner dense_intermediate_size intermediate_size_mlp"
    " expert_ffn_hidden_size ffn_size dim_ff": 64,
    "vocab_size vocab_size_per_layer_input text_vocab_size": VOCABULARY,
    "max_position_embeddings n_positions n_ctx max_sequence_length max_seq_len seq_length": 128,
    "num_experts num_local_experts n_routed_experts moe_num_experts num_moe_experts": 4,
    "num_experts_per_tok moe_topk moe_k top_k_experts num_experts_per_token moe_top_k": 2,
    "n_group topk_group": 1,
    "q_lora_rank kv_lora_rank o_lora_rank index_topk": 16,
    "linear_num_key_heads linear_num_value_heads index_n_heads": 4,
    "mamba_n_heads mamba_num_heads": 8,
    "mamba_d_head mamba_head_dim": 8,
    "mamba_d_state state_size ssm_state_size mamba_d_ssm": 16,
    "mamba_n_groups n_groups": 1,
    "image_size": 16,
    "patch_size": 8,
    "hidden_size_per_layer_input": 8,
    "lru_width": 32,
    "attention_window sliding_window local_attention_window_size block_size attention_chunk_size": 64,
}  # fmt: skip
SMALL = {name: value for names, value in SIZES.items() for name in names.split()}
MULTIPLIERS = ("multiplier", "residual_scale", "scale_depth", "scale_emb")
MLA = {"num_key_value_heads": 4, "head_dim": 8}
VARIANTS: list[dict[str, Any]] = [
    {}, MLA, {**MLA, "num_experts_per_tok": 2}, {"rope": {"mrope_section": [1, 1, 2]}},
    {"rope": {"mrope_section": [1, 1, 0]}}, {"per_layer_config": None}, {"head_dim": 8},
    {"use_cache": False}, {**MLA, "per_layer_config": None}, {"pad_token_id": 0},
    {"per_layer_config": None, "hidden_size_per_layer_input": 0}, {"sliding_window": 64},
    {"head_dim": 16}, {"num_kv_shared_layers": 0}, {"num_experts_per_tok": 2},
    {"rope": {"mrope_section": [2, 1, 1]}, **MLA}, {"is_decoder": True},
]  # fmt: skip
"""Changes to the sizes, tried in turn until a model runs."""
SPECIAL: dict[str, dict[str, Any]] = {
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 0, "mask_token_id": 4},
    "esmc": {"num_key_value_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "longformer": {"attention_window": 12},
    "rwkv": {"attention_hidden_size": 32, "intermediate_size": 64},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention"]},
}
"""Settings of families whose sizes depend on each other in their own way."""


@dataclass
class Verdict:
    """What became of one family."""

    family: str
    outcome: dict[str, str] = field(default_factory=dict)
    """By hookpoint: ``holds``, ``refused: REASON`` or ``WRONG: FIGURE``; empty without a model."""
    unmade: str = ""
    """Why no tiny model could be made, or run over plain text."""
    notes: set[str] = field(default_factory=set)

    @property
    def wrong(self) -> list[str]:
        """The hookpoints that are wrong."""
        return [name for name, said in self.outcome.items() if said.startswith("WRONG")]


def families() -> list[str]:
    """Every family in transformers with a model that reads text."""
    from transformers.models.auto import modeling_auto as auto

    mappings = (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    )  # fmt: skip
    return sorted({name for mapping in mappings for name in mapping})


def tiny_model(family: str) -> nn.Module:
    """A small random model of a family, with weights large enough to show every fault.

    Raises the first variant's exception when no variant of its configuration runs over text.
    """
    first: Exception | None = None
    tried = []
    for variant in VARIANTS:
        settings = tiny_settings(family, variant)
        if settings in tried:
            continue
        tried.append(settings)
        try:
            model = _random_model(family, tiny_config(family, settings))
            with torch.no_grad():
                _run(model, {"input_ids": torch.arange(10, 22)[None]})
            return model
        except Exception as error:
            first = first or error
    assert first is not None
    raise first


def _random_model(family: str, config: Any) -> nn.Module:
    torch.manual_seed(0)
    made = _model_class(family, config)
    with torch.device("meta"):
        values = sum(p.numel() for p in made._from_config(config).parameters())
    if values > MOST_VALUES:
        raise ValueError(f"its smallest model here has {values / 1e6:.0f} million parameters")
    model = made._from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        noise = 0.2 * torch.randn_like(parameter)
        parameter.data = noise if parameter.dim() > 1 else parameter.data + noise
    return model


def _run(model: nn.Module, text: dict[str, Any]) -> Any:
    """One forward pass over text; of the text's tower, when the model wants more than text."""
    try:
        return model(**text)
    except Exception:
        return _text_part(model)(**text)


def tiny_settings(family: str, variant: dict[str, Any]) -> dict[str, Any]:
    """A family's settings with small sizes, and multipliers that are not 1."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(family)
    settings = _small(default.to_dict(), variant | SPECIAL.get(family, {}))
    settings.pop("model_type", None)
    return settings


def tiny_config(family: str, settings: dict[str, Any]) -> Any:
    """A family's configuration with some settings."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[family].from_dict(settings)
    for part in (config, config.get_text_config()):
        if not hasattr(part, "pad_token_id"):
            part.pad_token_id = 0
    return config


def _small(settings: dict[str, Any], variant: dict[str, Any]) -> dict[str, Any]:
    layers = next((settings[k] for k in settings if SMALL.get(k) == LAYERS), None)
    small: dict[str, Any] = {}
    for key, value in settings.items():
        if key in variant:
            small[key] = variant[key]
        elif isinstance(value, dict):
            inner = (key.endswith("config") and key != "per_layer_config") or "rope" in key
            small[key] = _small(value, variant) if inner else value
            if "rope" in key and "rope" in variant:
                small[key] |= variant["rope"]
        elif isinstance(value, list) and layers is not None and len(value) == layers:
            small[key] = _few(value)
        elif key.endswith(("token_id", "token_index")) and isinstance(value, int):
            small[key] = value % 400 if value >= VOCABULARY else value
        elif isinstance(value, float) and value == 1.0 and any(m in key for m in MULTIPLIERS):
            small[key] = 0.3
        elif isinstance(value, int) and not isinstance(value, bool) and value and key in SMALL:
            small[key] = SMALL[key]
        elif key != "torch_dtype" and key != "dtype":
            small[key] = value
    return small


def _few(values: list[Any]) -> list[Any]:
    """The first values, but with one of every kind where there are several kinds."""
    kinds = list(dict.fromkeys(map(str, values)))
    last = next(v for v in values if str(v) == kinds[-1])
    return [*values[: LAYERS - 1], last]


def _model_class(family: str, config: Any) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    for mapping in (
        auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES, auto.MODEL_MAPPING_NAMES,
    ):  # fmt: skip
        name = mapping.get(family)
        if name is not None:
            return getattr(transformers, name if isinstance(name, str) else name[0])
    raise KeyError(family)


class Additions(TorchDispatchMode):
    """Records both sides of every addition that a forward pass makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sides: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            for side in args[:2]:
                if isinstance(side, Tensor) and side.is_floating_point() and side.dim() >= 2:
                    self.sides.append(side.detach().double().reshape(-1, side.shape[-1]).clone())
        return func(*args, **(kwargs or {}))


def judge(family: str) -> Verdict:
    """Whether each hookpoint of a family holds, is refused or is wrong."""
    verdict = Verdict(family)
    try:
        refused = _encoder_decoder(family)
        if refused:
            verdict.outcome = dict.fromkeys(HOOKPOINTS, f"refused: {refused}")
            return verdict
        model = tiny_model(family)
    except Exception as error:
        verdict.unmade = f"{type(error).__name__}: {_line(error)}"
        return verdict
    return judge_model(family, model, verdict)


def _encoder_decoder(family: str) -> str:
    """Why a family is refused by its configuration alone; empty when it is not."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from raysae.errors import UserError
    from raysae.transformer.model_config import refuse_encoder_decoder

    try:
        refuse_encoder_decoder(CONFIG_MAPPING[family](), family)
    except UserError as error:
        return str(error)
    except Exception:  # a configuration that needs arguments
        return ""
    return ""


def judge_model(family: str, model: nn.Module, verdict: Verdict | None = None) -> Verdict:
    """The same for a model that exists."""
    verdict = verdict or Verdict(family)
    found: dict[str, Any] = {}
    ids = np.random.default_rng(1).integers(3, 399, 21).astype(np.int32)
    for hookpoint in HOOKPOINTS:
        outcome = _captured(model, hookpoint, ids, verdict)
        if isinstance(outcome, str):
            verdict.outcome[hookpoint] = outcome
        else:
            found[hookpoint] = outcome
    if found:
        _compare(model, ids, found, verdict)
    return verdict


def _captured(model: nn.Module, hookpoint: str, ids: Any, verdict: Verdict) -> list[Tensor] | str:
    """The rows ``[T, D]`` of every layer by raysae; or why they are refused."""
    from raysae.activations import Site
    from raysae.errors import UserError
    from raysae.transformer.capture import Capturer
    from raysae.transformer.sequence import TokenSequence

    def sequence(number: int, ids: Any) -> Any:
        ones = np.ones(len(ids), dtype=bool)
        return TokenSequence(number, [0], "", ids, ids * 0 - 1, ids * 0 - 1, ones, ids * 0)

    layers = range(LAYERS)
    try:
        capturer = Capturer(model, hookpoint=hookpoint, layers=layers, dtype="float32")
        rows = capturer.rows([sequence(0, ids[:14][::-1].copy()), sequence(1, ids)], ["all"])
    except UserError as error:
        return f"refused: {error}"
    if not capturer.padding:
        verdict.notes.add("runs without padding")
    if any(found.normalised for found in capturer._taps[None].sublayers.values()):
        verdict.notes.add("normalises the stream")
    return [rows[Site(n, "all")].activation_ND[14:].double() for n in layers]


def _compare(model: nn.Module, ids: Any, found: dict[str, list[Tensor]], verdict: Verdict) -> None:
    """Hold what raysae captured against the model's own hidden states and additions."""
    from raysae.transformer.layouts import tensors_of

    additions, embedded = Additions(), []
    embedding = model.get_input_embeddings()
    watch = embedding.register_forward_hook(lambda m, a, given: embedded.extend(tensors_of(given)))
    text = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None]}
    with torch.no_grad(), additions:
        hidden = _run(model, {**text, "output_hidden_states": True}).hidden_states
    watch.remove()
    states = [state.double().reshape(-1, state.shape[-1]) for state in [*(hidden or ()), *embedded]]
    for hookpoint, rows in found.items():
        error = max(_errors(hookpoint, rows, states, additions.sides), default=None)
        verdict.outcome[hookpoint] = (
            "no check" if error is None else "holds" if error < 1e-4 else f"WRONG: {error:.2g}"
        )
    if len(found) == len(HOOKPOINTS) and "normalises the stream" not in verdict.notes:
        pre, post, attention, mlp = (found[name] for name in HOOKPOINTS)
        for n in range(LAYERS):
            error = _apart(pre[n] + attention[n] + mlp[n], post[n])
            if error > 1e-4:
                verdict.outcome["mlp_out"] = f"WRONG: the sum misses by {error:.2g} in layer {n}"


def _errors(
    hookpoint: str, rows: list[Tensor], states: list[Tensor], sides: list[Tensor]
) -> Iterator[float]:
    """How far each layer's rows are from the nearest hidden state, or side of an addition."""
    among = sides if hookpoint.endswith("_out") else [*states, *sides]
    last = LAYERS - (hookpoint == "resid_post")  # the last hidden state may be normalised
    for rows_TD in rows[:last]:
        like = [_apart(rows_TD, other) for other in among if other.shape == rows_TD.shape]
        if like or hookpoint.endswith("_out"):
            yield min(like, default=1.0)


def _text_part(model: nn.Module) -> nn.Module:
    from raysae.transformer.towers import find_tower

    return find_tower(model).forward


def _apart(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


class Late(BaseException):
    """A family took too long; no code that tries several ways may catch it."""


def _late(*_: object) -> None:
    raise Late(f"took more than {SECONDS} s")


def walk(names: list[str]) -> Iterator[Verdict]:
    """The verdict of every family, one after the other."""
    signal.signal(signal.SIGALRM, _late)
    for name in names:
        signal.alarm(SECONDS)
        try:
            verdict = judge(name)
        except (Exception, Late) as error:
            verdict = Verdict(name, unmade=f"{type(error).__name__}: {_line(error)}")
        finally:
            signal.alarm(0)
        yield verdict


def table(verdicts: list[Verdict]) -> str:
    """The verdicts in Markdown: one line for each outcome, with its families."""
    groups: dict[str, list[str]] = defaultdict(list)
    for verdict in verdicts:
        groups[_summary(verdict)].append(verdict.family)
    lines = ["| outcome | families |", "|---|---|"]
    for outcome, names in sorted(groups.items(), key=lambda group: -len(group[1])):
        lines.append(f"| {outcome} | {', '.join(names)} ({len(names)}) |")
    return "\n".join(lines)


def _summary(verdict: Verdict) -> str:
    if verdict.unmade:
        return f"no tiny model: {verdict.unmade.split(':')[0]}"
    if verdict.wrong:
        return f"WRONG: {', '.join(verdict.wrong)}"
    holds = [name for name, said in verdict.outcome.items() if said == "holds"]
    notes = "".join(f"; {note}" for note in sorted(verdict.notes))
    if len(holds) == len(HOOKPOINTS):
        return f"all four hold{notes}"
    return f"{', '.join(holds) or 'none'} hold{notes}" if holds else "refused"


def main() -> None:
    """Print every family's verdict, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="all, unless named")
    names = parser.parse_args().families or families()
    warnings.simplefilter("ignore")
    verdicts = []
    for verdict in walk(names):
        verdicts.append(verdict)
        said = verdict.unmade or "; ".join(f"{k} {v}" for k, v in verdict.outcome.items())
        print(f"{verdict.family}: {said} {sorted(verdict.notes) or ''}", flush=True)
    print(table(verdicts))
    sys.exit(any(verdict.wrong for verdict in verdicts))


if __name__ == "__main__":
    main()

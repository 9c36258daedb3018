"""Ablation: exact, whatever runs together; truly causal atoms first; random features beside."""

import numpy as np
import pytest
import torch

from raysae import Site
from raysae.analysis.ablating import Ablator, Treatment
from raysae.analysis.ablation_figures import Figures, permutation_p, ranked
from raysae.analysis.feature_choice import (
    Activity,
    activity_of,
    chosen,
    matched_controls,
    token_matcher,
)
from raysae.analysis.phases.ablation import Ablation, AblationSettings
from raysae.analysis.spliced_model import SplicedModel, single_tokens
from raysae.analysis.splicing import steered
from raysae.analysis.token_batches import Text, texts_of
from raysae.errors import UserError
from raysae.sae import build_sae
from raysae.sae.config import TopKConfig
from raysae.transformer.sequence import TokenSequence

SITE = Site(1, "all")
CAUSAL, ATOMS, WIDTH = 4, 24, 32


def quiet():
    pass


@pytest.fixture(scope="module")
def ablator(pocket):
    tokens = single_tokens(pocket, ["7", "="], "ablation.tokens")
    model = SplicedModel.of(pocket, [SITE], tokens)
    return Ablator(model, SITE, pocket.atlas[SITE], [], Treatment())


@pytest.fixture(scope="module")
def texts(pocket):
    return texts_of(pocket, "validation", 6, "auto")


def by_hand(pocket, text, edit):
    """Sums of CE, KL and the log-probability of "7" over a text whose rows are edited by a plain hook."""
    model = pocket.transformer.model
    ids = torch.tensor(text.token_id.astype(np.int64))[None]
    length = len(text.source)

    def write(_module, _args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[0, :length] = edit(hidden[0, :length])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    seven = pocket.transformer.tokenizer("7")["input_ids"][0]
    with torch.no_grad():
        clean = model(ids).logits[0, :-1].log_softmax(-1)
        handle = model.transformer.h[1].register_forward_hook(write)
        changed = model(ids).logits[0, :-1].log_softmax(-1)
        handle.remove()
    target = ids[0, 1:, None]
    ce = (clean.gather(1, target) - changed.gather(1, target)).double().sum()
    kl = (clean.exp() * (clean - changed)).double().sum()
    return float(ce), float(kl), float((changed - clean)[:, seven].double().sum())


@pytest.mark.parametrize("mode", ["zero", "mean", "clamp", "steer"])
def test_effects_equal_hooks_of_the_tests_own(pocket, ablator, texts, mode):
    sae, mean = pocket.atlas[SITE], np.linspace(0, 1, 48)
    ablator.treatment = Treatment(mode, 2.0, mean)
    features = [3, 17, 40]

    def edit(feature):
        def change(x):
            f = sae.encode(x)[:, feature : feature + 1]
            if mode == "steer":
                return steered(sae, feature, 2.0)(x)
            wanted = {"zero": 0.0, "mean": float(mean[feature]), "clamp": 2.0}[mode]
            return x + (wanted - f) * sae.W_dec[feature]

        return change

    _, effects = ablator.run(texts, [[feature] for feature in features], quiet)
    for column, feature in enumerate(features):
        for row, text in enumerate(texts):
            ce, kl, seven = by_hand(pocket, text, edit(feature))
            assert effects.sums["ce"][row, column] == pytest.approx(ce, rel=1e-3, abs=2e-4)
            assert effects.sums["kl"][row, column] == pytest.approx(kl, rel=1e-3, abs=2e-4)
            assert effects.tokens[row, column, 0] == pytest.approx(seven, rel=1e-3, abs=2e-4)


def test_a_set_is_its_features_together(pocket, ablator, texts):
    sae, features = pocket.atlas[SITE], [3, 17, 40]
    ablator.treatment = Treatment()

    def edit(x):
        return x - sae.encode(x)[:, features] @ sae.W_dec[features]

    _, effects = ablator.run(texts, [features, [3]], quiet)
    for row, text in enumerate(texts):
        ce, kl, _ = by_hand(pocket, text, edit)
        assert effects.sums["ce"][row, 0] == pytest.approx(ce, rel=1e-3, abs=2e-4)
        assert effects.sums["kl"][row, 0] == pytest.approx(kl, rel=1e-3, abs=2e-4)


def test_whole_passes_give_what_passes_from_the_middle_give(ablator, texts, monkeypatch):
    ablator.treatment = Treatment()
    groups = [[feature] for feature in range(48)]
    _, upper = ablator.run(texts, groups, quiet)
    monkeypatch.setattr(ablator, "block", None)
    _, whole = ablator.run(texts, groups, quiet)
    for name in ("ce", "kl", "ce_answer", "wrong"):
        assert np.allclose(upper.sums[name], whole.sums[name], atol=1e-4)
    assert upper.changed.any() and np.array_equal(upper.changed, whole.changed)


def test_a_feature_that_does_not_fire_changes_nothing(pocket, ablator, texts):
    ablator.treatment = Treatment()
    _, effects = ablator.run(texts, [[feature] for feature in range(48)], quiet)
    silent = ~effects.changed
    assert silent.any()
    assert not effects.sums["kl"][silent].any()
    text, feature = np.argwhere(silent)[0]
    _, alone = ablator.run([texts[text]], [[int(feature)]], quiet)  # nothing at all changes
    assert not alone.changed.any() and not alone.sums["kl"].any()


def planted_model():
    """A world of orthonormal atoms joined to a linear readout: a token's row is the sum of some atoms,
    and the head reads the first ``CAUSAL`` atoms alone. Blocks add nothing."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    atoms = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q[:ATOMS]
    magnitudes = torch.rand(40, ATOMS).add(0.5) * (torch.rand(40, ATOMS) < 0.25)
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()
        model.transformer.wpe.weight.zero_()
        model.transformer.wte.weight.copy_(magnitudes @ atoms)
        model.lm_head.weight.copy_(torch.randn(40, CAUSAL) @ atoms[:CAUSAL])
    sae = build_sae(TopKConfig(d_sae=ATOMS, k=ATOMS), WIDTH)
    with torch.no_grad():
        sae.W_dec.copy_(atoms)
        sae.W_enc.copy_(atoms.T)
    return model, sae


def random_texts(count):
    generator, found = np.random.default_rng(0), []
    for number in range(count):
        ids = generator.integers(0, 40, 20).astype(np.int32)
        ones, zeros = np.ones(20, np.bool_), np.zeros(20, np.bool_)
        source = TokenSequence(number, [number], "", ids, ids * 0 - 1, ids * 0 - 1, ones, ids * 0)
        found.append(Text(source, ids, ones, zeros))
    return found


def test_truly_causal_atoms_come_first():
    model, sae = planted_model()
    spliced = SplicedModel(model, ["resid_post"], [0, 1])
    ablator = Ablator(spliced, Site(0, "all"), sae, [], Treatment())
    clean, effects = ablator.run(random_texts(30), [[f] for f in range(ATOMS)], quiet)
    figures = Figures(clean, effects, True, 0)
    rows = ranked([{"feature": f, **figures.row(f)} for f in range(ATOMS)], "kl")
    first = sorted(rows, key=lambda row: row["rank"])[:CAUSAL]
    assert {row["feature"] for row in first} == set(range(CAUSAL))
    others = [row["kl_high"] for row in rows if row["feature"] >= CAUSAL]
    assert min(row["kl_low"] for row in first) > max(others)


def activity(density, correlation=None):
    density = np.array(density, float)
    return Activity(1000, density, density * 2, density * 0 if correlation is None else correlation)


def test_controls_have_the_nearest_densities_and_are_others():
    density = np.concatenate([np.full(40, 0.3), np.full(40, 0.01), [0.0]])
    found = matched_controls(activity(density), [0, 50], 5, seed=0)
    assert len(found[0]) == len(found[50]) == 5
    assert set(density[found[0]]) == {0.3} and set(density[found[50]]) == {0.01}
    drawn = [*found[0], *found[50]]
    assert len(set(drawn)) == 10 and not {0, 50} & set(drawn)
    assert found == matched_controls(activity(density), [0, 50], 5, seed=0)


def test_few_features_have_fewer_controls_and_others_are_no_controls():
    found = matched_controls(activity([0.2, 0.21, 0.3]), [0, 1], 3, seed=0)
    assert sorted(map(len, found.values())) == [0, 1]
    assert matched_controls(activity([0.2, 0.01]), [0], 3, seed=0) == {0: []}


def test_top_features_are_the_most_active_or_the_most_correlated():
    some = activity([0.1, 0.5, 0.0, 0.3], np.array([0.9, 0.1, 1.0, 0.2]))
    assert chosen(some, 2, by_pattern=False) == [1, 3]
    assert chosen(some, 2, by_pattern=True) == [0, 3]


def test_activity_is_that_of_the_training_rows(pocket):
    store, sae = pocket.store, pocket.atlas[SITE]
    is_number = token_matcher("numbers", pocket.transformer.tokenizer.decode)
    found = activity_of(store, SITE, sae, 1_000, is_number, quiet)
    assert found.rows == 1_000
    (shard, *_) = store.shards(SITE, "train")
    features = sae.encode(store.train(SITE)[:1_000].float()).double().detach().numpy()
    tokens = store.read(shard, "train")["token_id"].to_numpy()[:1_000]
    marks = np.array([is_number(int(token)) for token in tokens], float)
    assert np.allclose(found.density, (features > 0).mean(axis=0))
    assert np.allclose(found.mean, features.mean(axis=0))
    live = features.std(axis=0) > 0
    wanted = [np.corrcoef(column, marks)[0, 1] for column in features[:, live].T]
    assert np.allclose(found.correlation[live], wanted)


def test_a_difference_within_matches_has_a_p_value():
    assert permutation_p(np.full(12, 0.5), 0) < 0.01
    assert permutation_p(np.array([1.0, -1.0, 0.5, -0.5]), 0) == 1.0


def test_the_phase_by_its_parts(pocket, tmp_path):
    phase = Ablation()
    settings = AblationSettings(features=4, controls=1, sequences=12, by="numbers", tokens=("7",))
    phase.check(pocket, settings)
    items = [item for item in phase.items(pocket, settings) if item.sites[0].position == "all"]
    folders = {item: tmp_path / item.key for item in items}
    for item, folder in folders.items():
        folder.mkdir()
        phase.work(pocket, settings, item, folder, quiet)
    result = phase.collect(pocket, settings, folders)
    rows = [row for row in result.tables["features"] if row["layer"] == 1]
    assert sorted(row["rank"] for row in rows) == list(range(1, len(rows) + 1))
    mine = [row for row in rows if row["kind"] == "chosen"]
    assert len(mine) == 4 and all(row["correlation"] > 0 for row in mine)
    assert all(row["kl_low"] <= row["kl"] <= row["kl_high"] for row in rows)
    (site,) = [row for row in result.tables["sites"] if row["layer"] == 1]
    assert site["accuracy_set_low"] <= site["accuracy_set"] <= site["accuracy_set_high"]
    assert "logprob_7" in rows[0] and result.section.tables
    phase.draw(result, settings, "a small run", tmp_path)
    assert (tmp_path / "effects.png").stat().st_size > 10_000


def test_what_does_not_fit_is_refused(pocket):
    phase = Ablation()
    for settings, said in (
        (AblationSettings(given=[48]), "48 is no feature"),
        (AblationSettings(by="("), "regular expression"),
        (AblationSettings(mode="steer"), "steering by nothing"),
    ):
        with pytest.raises(UserError, match=said):
            phase.check(pocket, settings)
    with pytest.raises(UserError, match="is 2 tokens"):
        single_tokens(pocket, ["77"], "ablation.tokens")

"""Recipe values: each is what its key means by it, or is refused in one sentence."""

import pytest

from raysae.config import Recipe, load_recipe
from raysae.config.kinds import kind_of
from raysae.config.reading import read_value
from raysae.errors import UserError

TEXTS = (
    "2024-11-25", "007", "1e5", "12345e7", "0x10", "1_000", "12:30", "yes", "off", "1.10", ".5", "nan",
    "/data/run #1.jsonl", "/a: b", "[x].jsonl", "{x}", "%x", "@x", "*x", "&x", "!x", "|", ">",
    "- x", "? x", "it's", "'tis", 'say "x"', "a, b", "~/x", "C:\\x", "é", "x\ty",
)  # fmt: skip
TEXT_KEYS = ("source.model", "source.revision", "source.dataset", "store", "records.experiment")


@pytest.mark.parametrize("key", TEXT_KEYS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_name_or_a_path_is_what_is_typed(key, text, tmp_path):
    recipe = load_recipe(None, [f"{key}={text}"])
    assert read_value(key, text) == text
    assert at(recipe, key) == text
    (tmp_path / "copy.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "copy.yaml") == recipe, "the resolved copy says the same"


@pytest.mark.parametrize("text", ["2024-11-25", "007", "1e5", "yes", "null", "0x10", "1_000"])
def test_a_name_in_a_file_is_text(text, tmp_path):
    (tmp_path / "r.yaml").write_text(
        f"name: {text}\nsource: {{revision: '{text}', dataset: {text}}}\n"
        f"models: {{{text}: {{source: {{model: {text}}}}}}}\nsweep: {{warm_start: [{text}]}}\n"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.name, recipe.source.revision, recipe.source.dataset) == (text, text, text)
    assert recipe.models == {text: {"source": {"model": text}}}
    assert recipe.sweep.warm_start == (text,)
    assert load_recipe(None, [f"name={text}"]).name == text


def test_quotes_are_taken_off_and_null_is_null_where_it_may_be():
    for given, meant in (("'null'", "null"), ('"a\\tb"', "a\tb"), ("null", None), ("", None)):
        assert read_value("source.revision", given) == meant
    assert read_value("name", "null") == "null"


def at(recipe: Recipe, key: str):
    value = recipe.dump()
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.epochs=1e3", 1000),
        ("training.epochs=2.0", 2),
        ("sweep.trials=1_000", 1000),
        ("sweep.trials=010", 10),
        ("sweep.trials=08", 8),
        ("training.lr=1e-4", 1e-4),
        ("source.max_bytes=2 GB", 2 * 10**9),
        ("source.max_bytes=2 GiB", 2 * 2**30),
        ("source.max_tokens=1e6", 10**6),
        ("source.layers=[1e0, 2]", [1, 2]),
        ("seed=4294967295", 2**32 - 1),
    ],
)
def test_numbers_are_those_that_people_write(override, value):
    assert at(load_recipe(None, [override]), override.partition("=")[0]) == value


def test_searched_numbers_may_be_written_as_powers_of_ten():
    recipe = load_recipe(None, ["sweep.space={sae.d_sae: {low: 1e1, high: 1e3}}"])
    ends = recipe.sweep.space["sae.d_sae"]
    assert (ends.low, ends.high) == (10, 1000) and isinstance(ends.high, int)
    assert recipe.with_parameters({"sae.d_sae": "1e3", "training.lr": "1e-4"})[0].d_sae == 1000
    lr = load_recipe(None, ["sweep.space={training.lr: {low: 1.0, high: 2.0}}"])
    assert isinstance(lr.sweep.space["training.lr"].low, float), "a range of real numbers stays one"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "seed: .*greater than or equal to 0.*-1"),
        ("seed=4294967296", "seed: .*4294967295"),
        ("seed=1.5", "seed: .*1.5"),
        ("sweep.trials=yes", "sweep.trials: found yes, .* expected a whole number"),
        ("sweep.position=yes", "sweep.position: found yes"),
        ("sweep.trials=1:30", "sweep.trials: found 1:30"),
        ("sweep.trials=1e999", "sweep.trials: found 1e999"),
        ("training.lr=.nan", "training.lr: found .nan; expected a finite number"),
        ("training.lr=.inf", "training.lr: found .inf"),
        ("sweep.max_seconds=inf", "sweep.max_seconds: .*finite"),
        ("select.tolerance=nan", "select.tolerance: .*finite"),
        ("resources.memory=-8 GB", "resources.memory"),
        ("sweep.warm_start=runs/x", r"sweep.warm_start: .*a list, such as \[runs/x\]"),
        ("sweep=hello", "sweep: found 'hello'; expected a section"),
        ("training={epochs: 1, epochs: 2}", "training.epochs is given twice"),
        ("runs_dir=", "runs_dir: "),
        (f"name={'x' * 101}", "at most 100 letters"),
        ("name=a/b", "name of|no name of a folder"),
        ("name=..", "no name of a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_key(override, words):
    with pytest.raises(UserError, match=words) as refusal:
        load_recipe(None, [override])
    assert len(str(refusal.value).splitlines()) == 1


FILES = {
    "latin-1": ("# résumé\nname: x\n".encode("latin-1"), "line 1 is not UTF-8 text .*0xe9"),
    "utf-16 without a mark": ("name: x\n".encode("utf-16-be"), r"character U\+0000"),
    "a NUL": (b"name: x\0\n", r"character U\+0000"),
    "an escaped NUL": (b'store: "x\\0y"\n', "store: holds the character NUL"),
    "a control character": (b"name: x\x0b\n", r"character U\+000B"),
    "a key twice": (b"name: x\nseed: 1\nname: y\n", "name is given twice, in lines 1 and 3"),
    "an inner key twice": (b"sae:\n  k: 1\n  k: 2\n", "sae.k is given twice, in lines 2 and 3"),
    "a tab": (b"training:\n\tepochs: 3\n", "indent with spaces"),
    "two documents": (b"name: x\n---\nname: y\n", "a recipe is one document"),
    "nothing": (b"\n", "the file is empty"),
    "a list": (b"- a\n", "expected keys and values, found a list"),
    "itself": (b"training: &a\n  epochs: *a\n", "training: holds itself"),
    "brackets": (b"a: " + b"[" * 3000, "nested too deeply|not valid YAML"),
    "a tag of Python": (b"name: !!python/object:os.system x\n", "not valid YAML"),
    "an open quote": (b"name: 'x\n", "not valid YAML"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_is_told_why(case, tmp_path):
    content, words = FILES[case]
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as refusal:
        load_recipe(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_that_say_what_they_are_are_read(encoding, newline, tmp_path):
    text = newline.join(["name: x", "seed: 3", "records: {experiment: résumé}", ""])
    (tmp_path / "r.yaml").write_bytes(text.encode(encoding))
    recipe = load_recipe(tmp_path / "r.yaml")
    assert (recipe.name, recipe.seed, recipe.records.experiment) == ("x", 3, "résumé")


def test_a_folder_is_no_config_file(tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="--resume .* continues that run"):
        load_recipe(tmp_path)


def test_anchors_and_merged_sections_are_read(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "models:\n  a: &a {seed: 1, training: {epochs: 3}}\n  b:\n    <<: *a\n    seed: 2\n"
    )
    models = load_recipe(tmp_path / "r.yaml").models
    assert models["b"] == {"seed": 2, "training": {"epochs": 3}}


def test_a_default_that_the_search_replaces_contradicts_nothing():
    searched = "sweep.space={sae.k: {choices: [1, 2]}}"
    assert load_recipe(None, ["sae.d_sae=16", searched]).sae.d_sae == 16
    assert load_recipe(None, ["sae.d_sae=16", "sweep.space.sae.k={choices: [1]}"]).sae.k <= 16
    wide = load_recipe(None, ["sae.k=600", "sweep.space={sae.d_sae: {choices: [1024]}}"])
    assert wide.with_parameters({"sae.d_sae": 1024})[0].k == 600
    listed = load_recipe(
        None, ["sae.d_sae=16", "sweep.sampler=list", "sweep.configs=[{sae.k: 1}, {sae.k: 2}]"]
    )
    assert listed.with_parameters({"sae.k": 2})[0].k == 2
    for contradiction in (
        ["sae.d_sae=16", "sae.k=32", searched],
        ["sae.d_sae=16", "sweep.space={training.lr: {choices: [1]}}"],
        ["sae.d_sae=16", "sweep.sampler=list", "sweep.configs=[{sae.k: 1}, {training.lr: 1}]"],
    ):
        with pytest.raises(UserError, match="k is 32, above d_sae 16"):
            load_recipe(None, contradiction)


def test_kinds_follow_from_the_models():
    assert kind_of("source.dataset").is_text and kind_of("models.x.source.dataset").is_text
    assert kind_of("sweep.warm_start").item().is_text and kind_of("source.patterns.x").is_text
    assert not kind_of("source.positions").item().is_text  # a number or a name
    assert kind_of("sae.k").is_whole and kind_of("training.tokens").is_whole
    assert kind_of("training.lr").is_number and not kind_of("training.lr").is_whole
    assert kind_of("sweep.space.sae.k").at("choices").item().types == {
        "integer", "number", "string",
    }  # fmt: skip
    assert kind_of("no.such.key").types == set()

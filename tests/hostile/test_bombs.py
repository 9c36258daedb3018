"""Small files that stand for a great deal: refused before the time or the memory is taken."""

import json
import resource
import shutil
import threading
from contextlib import contextmanager

import pytest

from raysae.config import load_recipe
from raysae.errors import UserError
from raysae.pocket import POCKET_FOLDER
from raysae.text_template import parts_of
from raysae.transformer import guarded, text_files, texts
from raysae.transformer.chat import ChatWriter
from raysae.transformer.loading import load_model, load_tokenizer
from raysae.transformer.model_spec import ModelSpec
from raysae.transformer.patterns import Pattern, PatternFinder
from raysae.transformer.texts import TextSpec, read_documents


@contextmanager
def little_memory():
    """At most 1 GiB more than now, so that a bomb fails here and not on the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2**30, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def levels(first, line):
    """Twelve lines, each of which repeats the one before it ten times."""
    return "\n".join([f"a0: &a0 {first}", *(line(n) for n in range(1, 13))])


def ten(n):
    return ", ".join([f"*a{n - 1}"] * 10)


YAML = {
    "lists": (levels("[x]", lambda n: f"a{n}: &a{n} [{ten(n)}]"), "more than 100,000 values"),
    "mappings": (
        levels("{x: 1}", lambda n: f"a{n}: &a{n} {{{', '.join(f'k{j}: *a{n - 1}' for j in range(10))}}}"),
        "more than 100,000 values",
    ),
    "merge keys": (
        levels("{x: 1}", lambda n: f"a{n}: &a{n} {{<<: [{ten(n)}]}}"), "more than 100,000 values",
    ),
    "keys": (levels("[x]", lambda n: f"? &a{n} [{ten(n)}]\n: 1"), "100,000 values|recipe|unhashable"),
    "a list of itself": ("a: &a [*a]", "a: holds itself"),
    "a section of itself": ("a: &a {b: {c: *a}}", "a: holds itself"),
    "a merge of itself": ("a: &a {<<: *a}", "a: holds itself"),
    "a chain": (
        "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 500))]), "too deeply",
    ),
    "brackets": ("a: " + "[" * 100_000, "too deeply"),
    "braces": ("a: " + "{a: " * 5000, "too deeply"),
    "indents": ("\n".join(" " * n + "a:" for n in range(500)), "too deeply"),
    "dashes": ("- " * 5000 + "x", "too deeply"),
    "100 MB": ("# " + "x" * 100_000_000, "more than 2,000,000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_stands_for_more_than_it_says(case, tmp_path):
    text, words = YAML[case]
    (tmp_path / "r.yaml").write_text(text)
    with little_memory(), pytest.raises(UserError, match=words) as refusal:
        load_recipe(tmp_path / "r.yaml")
    assert "r.yaml" in str(refusal.value) and len(str(refusal.value)) < 2000


def test_aliases_and_merge_keys_of_a_usual_size_stay(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "sae: &sae {d_sae: 64, k: 4}\n"
        "models: {a: &a {sae: *sae}, b: {<<: *a, source: {layers: &l [0, 1]}}, c: {source: {layers: *l}}}"
    )
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.of_model("b").sae.d_sae == 64
    assert recipe.of_model("c").source.layers == (0, 1)


TEMPLATES = (
    "{q:>3000000000}", "{q:03000000000d}", "{q!r}", "{q!s:>9}", "{q:{w}}", "{q.real}", "{q[0]}",
    "{q.__class__.__mro__}", "{q:>9}", "a {q:^3000000000} b", "{q", "q}{",
)  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_names_columns_and_nothing_else(template, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"q": "x", "w": "3000000000"}\n')
    with little_memory():
        with pytest.raises(UserError, match=r"source\.text: cannot be filled in"):
            load_recipe(None, [f"source.text={template}"])
        with pytest.raises(UserError, match="cannot be filled in"):
            list(read_documents(TextSpec(str(tmp_path / "d.jsonl"), text=template)))


@pytest.mark.parametrize("name", ["q:>3000000000", "q!r", "q:{w}"])
def test_a_column_without_braces_is_a_name_alone(name, tmp_path):
    (tmp_path / "d.jsonl").write_text('{"q": "x"}\n')
    with little_memory(), pytest.raises(UserError):
        list(read_documents(TextSpec(str(tmp_path / "d.jsonl"), text=name)))


def test_plain_templates_are_filled_in_as_before(tmp_path):
    row = {"q": "x {q} {{", "a b": 7, "n": None}
    (tmp_path / "d.jsonl").write_text(json.dumps(row) + "\n")
    for template, text in {
        "{q}": "x {q} {{", "q": "x {q} {{", "{{{q}}} {a b}": "{x {q} {{} 7", "<{q}{n}>": "<x {q} {{>",
        "{q:}": "x {q} {{",
    }.items():  # fmt: skip
        [document] = read_documents(TextSpec(str(tmp_path / "d.jsonl"), text=template))
        assert document.text == text
    assert parts_of("a {{b}} {c}") == [("a {", None), ("b}", None), (" ", "c")]


def test_a_text_longer_than_any_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "LONGEST_TEXT", 1000)
    file = tmp_path / "d.jsonl"
    file.write_text('{"q": "short"}\n' + json.dumps({"q": "x" * 600}) + "\n")
    with pytest.raises(UserError, match=r"row 1 of '.*d\.jsonl' has a text of 1,200 characters"):
        list(read_documents(TextSpec(str(file), text="{q}{q}")))


@pytest.mark.parametrize("name", ["d.jsonl", "d.txt", "d.csv"])
def test_a_line_without_an_end_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    start = {"d.jsonl": '{"q": "x"}\n{"q": "', "d.txt": "x\n", "d.csv": 'q\nx\n"'}[name]
    (tmp_path / name).write_text(start + "y" * 5000)
    column = "text" if name == "d.txt" else "q"
    with pytest.raises(UserError, match="line 2|line 3"):
        list(read_documents(TextSpec(str(tmp_path / name), text=column)))


def test_a_list_of_rows_in_one_long_line_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 100)
    rows = [{"q": f"row {number}"} for number in range(50)]
    (tmp_path / "d.json").write_text(json.dumps(rows))
    assert len(list(read_documents(TextSpec(str(tmp_path / "d.json"), text="q")))) == 50


EVIL = {
    "repeats in repeats": (r"(a+)+$", "a" * 60 + "b"),
    "alternatives": (r"(a|aa)+$", "a" * 60 + "b"),
    "references": (r"(.*)(.*)(.*)(.*)(.*)\1\2\3\4\5x$", "ab" * 200),
    "spaces": (r"(\s*\s*\s*\s*)x", " " * 20_000),
}


@pytest.mark.parametrize("threaded", [False, True], ids=["main thread", "thread"])
@pytest.mark.parametrize("case", EVIL)
def test_a_pattern_without_an_end_is_named(case, threaded, monkeypatch):
    expression, text = EVIL[case]
    monkeypatch.setattr(guarded, "SECONDS", 0.5)
    finder = PatternFinder([Pattern("numbers", r"\d+"), Pattern("mine", expression)], "source.")
    found = []

    def look():
        try:
            list(finder.places([("12 ab", 6, ()), (text, 7, ())]))
        except UserError as error:
            found.append(str(error))

    if threaded:
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    else:
        look()
    assert found and "source.patterns: mine" in found[0] and "row 7" in found[0]
    assert list(finder.places([("12 ####", 8, ())])), "the next text is read"


def test_patterns_find_what_they_found():
    finder = PatternFinder(
        [Pattern("a", r"x(\d+)"), Pattern("b", r"\w"), Pattern("c", "role:user")]
    )
    batch = [(f"x1 x{number}", number, ()) for number in range(300)]
    for (text, _, _), (first, second, third) in zip(batch, finder.places(batch), strict=True):
        assert first == [(1, 2), (4, len(text))] and third == []
        assert len(second) == len(text) - 1


@pytest.mark.parametrize(
    "pattern", ["(" * 5000, "a{99999999999999999999}", "a" * 100_000, "(?P<a>", "(?<=a+)"]
)
def test_patterns_that_cannot_be_compiled(pattern):
    with pytest.raises(UserError, match=r"source\.patterns"):
        load_recipe(None, [f"source.patterns={{mine: '{pattern}'}}"])


LOOP = "{% for i in range(99999) %}"
CHATS = {
    "a long range": ("{% for i in range(10**9) %}x{% endfor %}", "refuses it|seconds"),
    "loops in loops": (f"{LOOP}{LOOP}{LOOP}{{% endfor %}}{{% endfor %}}{{% endfor %}}x", "seconds"),
    "a power": ("{{ 10 ** (10 ** 10) }}", "seconds|memory|refuses"),
    "a long string": ("{{ 'a' * 10**10 }}", "memory|refuses"),
    "a wide string": ("{{ 'a'.center(10**10) }}", "memory|refuses"),
    "doubled": (
        "{% set n = namespace(x='abcdefgh') %}{% for i in range(99) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}",
        "memory|refuses|ended|seconds|writes",
    ),
    "a long text": (
        f"{{% for i in range(99) %}}{LOOP}0123456789012{{% endfor %}}{{% endfor %}}", "writes|seconds",
    ),
    "an error": ("{{ raise_exception('no') }}", "refuses it"),
    "a fault": ("{{ 1 / 0 }}", "refuses it"),
    "no template": ("{% for %}", "refuses it"),
    "an escape": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses it"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHATS)
def test_a_chat_template_without_an_end_is_named(case, monkeypatch):
    template, words = CHATS[case]
    monkeypatch.setattr(guarded, "SECONDS", 2.0)
    tokenizer = load_tokenizer(ModelSpec("pocket"))
    tokenizer.chat_template = template
    writer = ChatWriter(tokenizer)
    with pytest.raises(UserError, match=words) as refusal:
        list(writer.texts([(({"role": "user", "content": "hello"},), "source.chat_column, row 3")]))
    assert str(refusal.value).startswith("source.chat_column, row 3: the")
    tokenizer.chat_template = "{{ messages[0].content }}"
    chats = [(({"role": "user", "content": f"{n}"},), f"row {n}") for n in range(20)]
    writer = ChatWriter(tokenizer)
    assert list(writer.texts(chats)) == [f"{n}" for n in range(20)]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(POCKET_FOLDER, folder)
    return folder


CLAIMS = (
    {"n_embd": 10**9}, {"n_layer": 10**6}, {"n_layer": 9_999}, {"n_embd": 10**18}, {"vocab_size": 10**12},
    {"vocab_size": 10**18}, {"n_inner": 10**10}, {"n_positions": 10**9}, {"n_layer": 0}, {"n_embd": -64},
    {"n_embd": 64.5}, {"n_embd": "x"}, {"n_layer": True}, {"n_head": 0},
)  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_a_configuration_that_claims_too_much(claim, model):
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, **claim}))
    from raysae.extraction.plan import plan_extraction
    from raysae.extraction.test_pass import test_pass

    with little_memory(), pytest.raises(UserError) as refusal:
        test_pass(
            plan_extraction(load_recipe(None, [f"source.model={model}", "source.layers=[0]"]))
        )
    message = str(refusal.value)
    assert "config.json" in message or "config" in message
    if claim.get("n_layer") in (10**6, 9_999) or claim.get("n_embd") == 10**9:
        assert (
            f"{next(iter(claim.values())):,}" in message and str(model / "config.json") in message
        )


@pytest.mark.parametrize("name", ["logging", "os", "pipeline", "AutoModel", "NoSuchModel", 5, None])
def test_a_configuration_names_any_class(name, model):
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "architectures": [name]}))
    try:
        load_model(ModelSpec(str(model)))
    except UserError as error:
        assert str(model) in str(error)


HEADERS = {
    "deep": b"[" * 100_000,
    "no shapes": b'{"a": {"data_offsets": [0, 0]}}',
    "a shape of text": b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
    "a list": b"[1]",
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_weights(case, model):
    header = HEADERS[case]
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(ModelSpec(str(model)))


def test_a_header_as_long_as_the_file_is_not_read(model):
    with open(model / "model.safetensors", "wb") as file:
        file.write((10**11 - 8).to_bytes(8, "little"))
        file.truncate(10**11)
    with little_memory(), pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(ModelSpec(str(model)))

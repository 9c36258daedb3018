"""What the tests share: one Ray for the session, one small run of the main job, small models."""

from pathlib import Path

import pytest
import torch

from raysae.console.quiet import quiet_environment

quiet_environment()
# small matrices on shared cores: threads that wait for one another made the tests 20 times slower
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"

LONGEST = (
    "test_kills.py", "test_main_job.py", "test_ray_internals.py", "test_readme.py", "test_recovery.py",
)  # fmt: skip
"""Files to begin with, so that two workers end together."""
SMALL_RUN = ("main_job", "readme", "outage", "streaming", "commands", "study", "mlflow_refusal",
             "report_failure")  # fmt: skip
"""Files that look at the small run: one worker makes it for all of them."""
ALONE = ("test_recovery.py", "test_ray_internals.py")
"""Files whose tests need not run in one worker."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Share the tests out by file: what a file sets up is then set up once."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = Path(nodeid.split("::")[0])
            if file.name in ALONE:
                return nodeid
            return "small run" if file.stem.removeprefix("test_") in SMALL_RUN else str(file)

    return ByFile(config, log)


SMALL = {
    "name": "small",
    "source": {
        "sequences": 700,
        "layers": [1, 2],
        "positions": [-3, -1],
        "sequences_per_shard": 300,
        "validation": 0.2,
    },
    "training": {"epochs": 4, "batch_size": 64, "evaluations": 3},
    "sweep": {
        "trials": 5,
        "startup_trials": 3,
        "space": {"sae.d_sae": {"choices": [16, 32, 64]}, "sae.k": {"choices": [1, 2, 4, 8]}},
    },
    "resources": {"max_concurrent": 2},  # each process more imports torch before it works
}
"""A recipe small enough to run in seconds."""


@pytest.fixture(scope="session", autouse=True)
def phases_that_are_asked_for():
    """Runs in this process analyse nothing unless their recipe names phases: each costs seconds."""
    import raysae.pipeline.analysis as analysis

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "quick_phases", list)
        yield


@pytest.fixture(scope="session")
def connected_ray(tmp_path_factory):
    import ray

    from raysae.cluster.ray_internals import IDLE_MS, fewer_processes
    from raysae.config import ResourcesConfig

    with pytest.MonkeyPatch.context() as patch:  # its workers' copies of what lives at a URI
        patch.setenv("RAYSAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, value in LOOPBACK_S3.items():
            patch.setenv(name, value)
        with fewer_processes(ResourcesConfig()):  # as a sweep's own Ray
            ray.init(
                "local", num_cpus=4, include_dashboard=False, log_to_driver=False,
                _system_config={"idle_worker_killing_time_threshold_ms": IDLE_MS},
            )  # fmt: skip
    yield
    ray.shutdown()


LOOPBACK_S3 = {
    "AWS_ACCESS_KEY_ID": "loopback-key", "AWS_SECRET_ACCESS_KEY": "loopback-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip
"""What Ray's workers need for a server of a test's own, which asks for no key."""


@pytest.fixture(scope="session")
def small_run(connected_ray, tmp_path_factory):
    """A finished run of the main job on the pocket GPT-2."""
    import raysae

    folder = tmp_path_factory.mktemp("main_job")
    places = {"runs_dir": str(folder / "runs"), "store": str(folder / "store")}
    return raysae.sweep({**SMALL, "analyze": {"phases": ["labels", "loss"]}, **places})


SIZE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 1}
HEADED = {**GROUPED, "head_dim": 16}
FAMILIES = {
    "gpt2": ("GPT2", "LMHeadModel", {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}),
    "gpt_neox": ("GPTNeoX", "ForCausalLM", SIZE),
    "llama": ("Llama", "ForCausalLM", GROUPED),
    "mistral": ("Mistral", "ForCausalLM", GROUPED),
    "qwen2": ("Qwen2", "ForCausalLM", GROUPED),
    "qwen3": ("Qwen3", "ForCausalLM", HEADED),
    "gemma": ("Gemma", "ForCausalLM", HEADED),
    "gemma2": ("Gemma2", "ForCausalLM", {**HEADED, "query_pre_attn_scalar": 16}),
    "gemma3": ("Gemma3", "ForCausalLM", {**HEADED, "query_pre_attn_scalar": 16}),
    "phi": ("Phi", "ForCausalLM", SIZE),
    "phi3": ("Phi3", "ForCausalLM", {**GROUPED, "pad_token_id": 0}),
    "bert": ("Bert", "ForMaskedLM", SIZE),
}
"""Names of families with their classes' prefix and suffix and the size of a tiny instance."""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of small random models of every family, with the pocket tokenizer, by name."""
    import torch
    import transformers

    from raysae.pocket.tokenizer import build_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer(64)
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    for name, (prefix, suffix, size) in FAMILIES.items():
        prefix_of_config = {"Gemma3": "Gemma3Text"}.get(prefix, prefix)
        config = getattr(transformers, f"{prefix_of_config}Config")(**common, **size)
        getattr(transformers, prefix + suffix)(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: folder / name for name in FAMILIES}

"""`save_pretrained(push_to_hub=True)` and back, in fresh processes against a Hub on the loopback interface."""

import json
import os
import subprocess
import sys
import textwrap

from loopback_hub import LoopbackHub

TOKEN = "hf_" + "r" * 34
CONFIG = {"sampler": "dpm++", "num_inference_steps": 4}
ONLINE = """
    import torch
    from video_diffusion import VideoDiffusionPipeline

    def sample(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(output_type="pt", generator=torch.Generator().manual_seed(0)).frames

    load = VideoDiffusionPipeline.from_pretrained
    pipeline = load(FOLDER)
    pipeline.save_pretrained(OUT / "plain", push_to_hub=True, repo_id="alice/plain", max_shard_size="90KB")
    assert torch.equal(sample(load("alice/plain")), sample(pipeline))
    assert load("alice/plain").generation_config == pipeline.generation_config == CONFIG

    half = load(FOLDER, dtype=torch.float16)
    options = {"variant": "fp16", "max_shard_size": "45KB", "private": True, "commit_message": "Half"}
    half.save_pretrained(OUT / "half", push_to_hub=True, **options)  # under the name of the folder
    back = load("alice/half", variant="fp16", dtype=torch.float16)
    assert {parameter.dtype for parameter in back.unet.parameters()} == {torch.float16}
    assert torch.equal(sample(back), sample(half))
    assert back.generation_config == CONFIG
    try:
        load("alice/nothing")
    except OSError as error:
        assert "'alice/nothing' is no folder in" in str(error), error
    else:
        raise AssertionError("loaded")
"""


def python(code, folder, out, **variables):
    head = f"from pathlib import Path\nFOLDER, OUT, CONFIG = Path({str(folder)!r}), Path({str(out)!r}), {CONFIG!r}\n"
    run = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_what_is_pushed_while_saving_loads_again_sharded_and_in_a_variant(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.generation_config = dict(CONFIG)
    pipeline.save_pretrained(tmp_path / "local")
    with LoopbackHub({TOKEN: "alice"}) as hub:
        environment = hub.environment(tmp_path / "home", TOKEN)
        python(ONLINE, tmp_path / "local", tmp_path / "out", **environment)
        plain, half = hub.files("alice/plain"), hub.files("alice/half")
        assert hub.repositories["models", "alice/half"].private
        assert hub.commits("alice/half")[-1].message == "Half"
    for files, name in ((plain, ".safetensors"), (half, ".safetensors")):
        assert sum(file.startswith("unet/") and file.endswith(name) for file in files) > 1  # sharded
        assert json.loads(files["generation_config.json"]) == CONFIG
        assert str(tmp_path) not in "".join(data.decode() for file, data in files.items() if file.endswith(".json"))
    assert all(".fp16" in file for file in half if file.startswith("unet/") and "safetensors" in file)

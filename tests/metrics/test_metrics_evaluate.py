"""The `evaluate` modules: folder loading, batches, combination, variable lengths, two processes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from video_diffusion import metrics
from video_diffusion.metrics import I3D, FVDMetric, LPIPSMetric, WeightsUnavailableError, weights

evaluate = pytest.importorskip("evaluate")
ACCUMULATORS = {
    "video_ssim": metrics.SSIMMetric,
    "video_psnr": metrics.PSNRMetric,
    "video_mse": metrics.MSEMetric,
}
# A stand-in for I3D keeps the processes light: what is tested is that logits and values of both come together.
STAND_IN = """
import torch
from video_diffusion.metrics import I3D

def logits(video, batch_size):
    powers = [video.double().mean(dim=(1, 2, 3)) ** k for k in range(1, 14)]
    return torch.cat(powers, dim=1)[:, :400].float()

I3D.from_pretrained = lambda *_: logits
"""
TWO_PROCESSES = (
    STAND_IN
    + """
import json, sys
from video_diffusion import metrics
process, cache = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
x, y = (torch.rand(4, 9, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
share = slice(0, 3) if process == 0 else slice(3, 4)
figures = {}
for name in ("video_ssim", "fvd"):
    module = metrics.load(name, num_process=2, process_id=process, experiment_id="two", cache_dir=cache)
    module.add_batch(predictions=x[share], references=y[share])
    figures[name] = module.compute()
print(json.dumps(figures))
"""
)


def pair(n: int = 4, frames: int = 9, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(
        torch.rand(n, frames, 1, size, size, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == pytest.approx(second[key], rel=1e-6), key


@pytest.fixture
def needs():
    def resolve(name: str) -> None:
        try:
            weights.resolve(name)
        except WeightsUnavailableError as error:
            pytest.skip(str(error))

    return resolve


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_batches_lists_and_single_videos_give_the_accumulators_figures(name, tmp_path):
    x, y = pair()
    expected = ACCUMULATORS[name]()
    expected.update(x, y)
    module = evaluate.load(str(metrics.module_folder(name)), cache_dir=str(tmp_path))
    module.add_batch(predictions=x[:2], references=y[:2].numpy())
    module.add_batch(predictions=[x[2].numpy()], references=y[2:3].tolist())
    module.add(prediction=x[3], reference=y[3])
    assert_same(module.compute(), expected.compute())
    assert_same(module.compute(predictions=x, references=y), expected.compute())


def test_videos_may_differ_in_length_and_size_within_a_batch(tmp_path):
    x, y = pair(3, 6)
    predictions, references = [x[0], x[1, :2], x[2, ..., :20]], [y[0], y[1, :2], y[2, ..., :20]]
    expected = metrics.SSIMMetric()
    for p, r in zip(predictions, references, strict=True):
        expected.update(p[None], r[None])
    module = metrics.load("video_ssim", cache_dir=str(tmp_path))
    figures = module.compute(predictions=predictions, references=references, num_frames=2)
    assert_same(figures, expected.compute(2))


def test_modules_combine(tmp_path):
    x, y = pair(2, 3)
    combined = evaluate.combine([metrics.load(name, cache_dir=str(tmp_path)) for name in ACCUMULATORS])
    combined.add_batch(predictions=x, references=y)
    figures = combined.compute()
    for name, key in [("video_ssim", "ssim"), ("video_psnr", "psnr"), ("video_mse", "mae")]:
        expected = ACCUMULATORS[name]()
        expected.update(x, y)
        assert figures[key] == pytest.approx(expected.compute()[key], rel=1e-9)


def run_two(cache) -> list[dict[str, dict | None]]:
    processes = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(i), str(cache)], stdout=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def test_two_processes_give_the_figures_of_one(tmp_path):
    first, second = run_two(tmp_path)
    names: dict = {}
    exec(STAND_IN.replace("I3D.from_pretrained", "stand_in"), names)
    ssim, fvd = metrics.SSIMMetric(), FVDMetric(names["logits"])
    ssim.update(*pair())
    fvd.update(*pair())
    assert second == {"video_ssim": None, "fvd": None}
    assert_same(first["video_ssim"], ssim.compute())
    assert first["fvd"]["num_predictions"] == 4
    assert_same(first["fvd"], fvd.compute())


@pytest.mark.network
def test_lpips_module_takes_its_network_and_size(tmp_path, needs):
    needs("lpips-alex")
    x, y = pair(2, 2)
    expected = LPIPSMetric("alex", 64)
    expected.update(x, y)
    module = metrics.load("video_lpips", net="alex", resize=64, cache_dir=str(tmp_path))
    assert_same(module.compute(predictions=x, references=y), expected.compute())


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (pair(1)[0], pair(1)[1], "at least 2 videos"),
        (pair(2, 8)[0], pair(2, 8)[1], "8 frames.*prepend the context"),
        (pair(2)[0] - 1, pair(2)[1], r"\[0, 1\]"),
        (pair(2)[0], pair(3)[1], "2 predictions and 3 references"),
        ([np.zeros((9, 32, 32))] * 2, [np.zeros((9, 32, 32))] * 2, r"\[F, C, H, W\]"),
    ],
)
def test_fvd_refuses_bad_input_before_the_network_loads(tmp_path, monkeypatch, predictions, references, message):
    monkeypatch.setattr(I3D, "from_pretrained", lambda *_, **__: pytest.fail("the network was loaded"))
    with pytest.raises(ValueError, match=message):
        metrics.load("fvd", cache_dir=str(tmp_path)).compute(predictions=predictions, references=references)


@pytest.mark.parametrize("name", metrics.MODULES)
def test_each_folder_is_a_metric_space(name):
    from huggingface_hub import ModelCard

    folder = metrics.module_folder(name)
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    assert card.data.sdk == "gradio"
    assert {"evaluate", "metric"} <= set(card.data.tags)
    assert (folder / card.data.app_file).is_file()
    assert (folder / f"{name}.py").is_file()
    assert "video-diffusion" in (folder / "requirements.txt").read_text()


def test_combined_modules_take_single_videos(tmp_path):
    """`evaluate.combine` hands one video on as `predictions`."""
    x, y = pair(3)
    modules = [metrics.load(name, cache_dir=str(tmp_path / name)) for name in ("video_psnr", "video_mse")]
    combined = evaluate.combine(modules)
    for prediction, reference in zip(x, y, strict=True):
        combined.add(prediction=prediction, reference=reference)
    figures = combined.compute()
    expected = metrics.load("video_psnr", cache_dir=str(tmp_path / "alone")).compute(predictions=x, references=y)
    assert figures["psnr"] == pytest.approx(expected["psnr"], rel=1e-9)
    with pytest.raises(ValueError, match="`prediction` and `predictions` are both given"):
        modules[0].add(prediction=x[0], predictions=x[0], reference=y[0])

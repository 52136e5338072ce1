import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from stand_ins import SIZE, Noisy, run_with, some_pixels, unit
from video_diffusion.evaluation import PROTOCOLS, FolderSource, Run, Scorer, Workers, evaluate
from video_diffusion.evaluation.cache import remember
from video_diffusion.evaluation.report import markdown, rows, write_report
from video_diffusion.evaluation.scores import best_sample, columns_of, make_metrics
from video_diffusion.metrics import (
    I3D,
    LPIPS,
    PSNRMetric,
    SSIMMetric,
    WeightsUnavailableError,
    frechet_distance,
    mae_sum,
    mse_sum,
    psnr,
    ssim,
)

PAPER, MCVD, OPENSTL, UNCONDITIONAL = PROTOCOLS.values()


# ----------------------------------------------------------------------------------------------- figures and baselines
def test_baselines_are_those_computed_directly(tmp_path):
    figures = run_with(PAPER, tmp_path, num_videos=6)["figures"]
    truth, real = unit(PAPER.truth(range(6), SIZE)), unit(PAPER.real(range(6), SIZE))
    black, still = truth.clone(), truth.clone()
    black[:, 5:], still[:, 5:] = 0, truth[:, 4:5]
    for name, video in (("black_frame", black), ("last_frame", still), ("real_against_real", real)):
        for horizon in (2, 4, 5):
            places = slice(5, 5 + horizon)
            found = {metric: figures[metric][name]["first_frames"][str(horizon)] for metric in ("psnr", "ssim")}
            assert found["psnr"]["psnr"] == pytest.approx(psnr(video[:, places], truth[:, places]).item())
            assert found["ssim"]["ssim"] == pytest.approx(ssim(video[:, places], truth[:, places]).item())
        covariances = [np.cov(some_pixels(side).double().numpy().T) for side in (video, truth)]
        means = [some_pixels(side).double().mean(dim=0) for side in (video, truth)]
        args = [x for m, c in zip(means, covariances, strict=True) for x in (m, torch.from_numpy(c))]
        assert figures["fvd"]["10"]["6"][name] == pytest.approx(frechet_distance(*args).item(), rel=1e-4)


def test_a_black_frame_on_classic_moving_mnist_scores_psnr_14_2_and_ssim_73():
    truth = unit(PAPER.truth(range(96), 64))[:, PAPER.num_given :]
    figures = {}
    for metric in (PSNRMetric(), SSIMMetric()):
        metric.update(torch.zeros_like(truth), truth)
        figures |= metric.compute()
    assert figures["psnr"] == pytest.approx(14.2, abs=0.3)
    assert figures["psnr_paper"] == pytest.approx(56.3, abs=0.3)
    assert figures["ssim"] == pytest.approx(0.73, abs=0.01)


@pytest.mark.network
def test_the_default_networks_are_the_real_ones():
    videos = [unit(PAPER.truth([i], 64)) for i in (0, 1)]
    scorer = Scorer(PAPER, (10,))
    try:
        i3d, lpips = I3D.from_pretrained(), LPIPS.from_pretrained("alex")
    except WeightsUnavailableError as error:
        pytest.skip(str(error))
    assert torch.allclose(scorer.features(videos[0]), i3d(videos[0]), atol=1e-4)
    assert torch.allclose(scorer.metrics["lpips"].measure(*videos)[0], lpips(*videos))
    assert make_metrics(MCVD)["lpips_128"].resize == 128
    assert scorer.networks == {"fvd": "I3D Kinetics-400, logits", "lpips": "AlexNet, version 0.1"}


def test_true_videos_in_a_folder_score_perfectly_and_the_json_is_valid(tmp_path):
    (tmp_path / "videos").mkdir()
    for i, clip in enumerate(OPENSTL.truth(range(3), 64)):
        np.save(tmp_path / "videos" / f"{i}.npy", clip[10:, ..., 0])
    report = run_with(OPENSTL, tmp_path, FolderSource(tmp_path / "videos"))
    ours = {metric: columns["one_sample"] for metric, columns in report["figures"].items()}
    assert (report["num_videos"], report["num_samples"], report["network_calls"]) == (3, 1, None)
    assert ours["psnr"]["psnr"] == 100
    assert ours["psnr"]["num_identical"] == ours["psnr"]["num_frames"] == 30
    assert ours["ssim"]["ssim"] == pytest.approx(1)
    assert ours["mse"]["mse"] == ours["mse"]["mae"] == ours["lpips"]["lpips"] == 0
    file = write_report(report, tmp_path)[0]

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(file.read_text(), parse_constant=refuse)["figures"] == report["figures"]
    assert "30 of 30 are exact (infinite) and count as 100 dB" in markdown(report)


def test_the_frechet_distance_of_true_videos_is_zero(tmp_path):
    figures = run_with(PAPER, tmp_path, Noisy(PAPER, strength=0), num_videos=4)["figures"]["fvd"]["10"]["4"]
    assert figures["one_sample"] == pytest.approx(0, abs=1e-6)
    assert figures["real_against_real"] > 1


# ------------------------------------------------------------------------------------------------- several predictions
def test_the_best_of_the_samples_is_chosen_by_clip_and_metric():
    rng = np.random.default_rng(0)
    values = rng.random((4, 2, 5, 3))
    for names, choose in ((("psnr", "ssim"), np.argmax), (("mse", "mae"), np.argmin)):
        best = best_sample(values, names)
        for k in range(2):
            for clip in range(5):
                chosen = choose(values[:, k, clip].mean(axis=-1))
                assert np.array_equal(best[k, clip], values[chosen, k, clip])
    chosen = values[:, 0].mean(axis=-1).argmax(axis=0)
    assert np.array_equal(best_sample(values, ("psnr", "identical"))[1], values[chosen, 1, np.arange(5)])


def test_one_sample_has_one_column():
    values = np.random.default_rng(0).random((1, 1, 2, 3))
    assert list(columns_of({"model": values, "average": values, "black_frame": values}, ["ssim"])) == [
        "one_sample",
        "black_frame",
    ]


def test_openstl_reports_one_sample_their_mean_the_best_and_the_average_clip(tmp_path):
    source = Noisy(OPENSTL)
    report = run_with(OPENSTL, tmp_path, source, num_videos=3, num_samples=4)
    figures, truth = report["figures"], unit(OPENSTL.truth(range(3), SIZE))[:, 10:]
    clips = unit(np.stack([source._samples(i, 4, 20) for i in range(3)]))[:, :, 10:]
    each = torch.stack([mse_sum(clips[:, s], truth, "clip") for s in range(4)])
    average = clips.mean(dim=1)
    assert report["headline"] == "average_prediction"
    assert figures["mse"]["one_sample"]["mse"] == pytest.approx(each[0].mean().item())
    assert figures["mse"]["mean_of_samples"]["mse"] == pytest.approx(each.mean().item())
    assert figures["mse"]["best_of_samples"]["mse"] == pytest.approx(each.amin(dim=0).mean().item())
    assert figures["mse"]["average_prediction"]["mse"] == pytest.approx(mse_sum(average, truth).item(), rel=1e-5)
    assert figures["mse"]["average_prediction"]["mae"] == pytest.approx(mae_sum(average, truth).item(), rel=1e-5)
    assert figures["mse"]["average_prediction"]["mse"] < figures["mse"]["best_of_samples"]["mse"]


def test_mcvd_takes_the_best_psnr_of_whole_clips_and_ssim_of_binarised_frames_and_the_mean_fvd(tmp_path):
    source = Noisy(MCVD, strength=200)
    report = run_with(MCVD, tmp_path, source, num_videos=4, num_samples=3)
    figures, truth = report["figures"], unit(MCVD.truth(range(4), SIZE))[:, 5:]
    clips = unit(np.stack([source._samples(i, 3, 15) for i in range(4)]))[:, :, 5:]
    each = torch.stack([psnr(clips[:, s], truth, "clip", over="clip") for s in range(3)])
    binary = [ssim((clips[:, s] > 0.5).float(), (truth > 0.5).float(), "clip") for s in range(3)]
    error = torch.stack([(clips[:, s] - truth).abs().mean(dim=(1, 2, 3, 4)) for s in range(3)])
    assert report["headline"] == "best_of_samples"
    best = {metric: columns["best_of_samples"] for metric, columns in figures.items() if metric != "fvd"}
    assert best["psnr_of_clip"]["psnr"] == pytest.approx(each.amax(dim=0).mean().item())
    assert best["ssim_binarised"]["ssim"] == pytest.approx(torch.stack(binary).amax(dim=0).mean().item())
    assert best["lpips_128"]["lpips"] == pytest.approx(error.amin(dim=0).mean().item(), rel=1e-5)
    distances = figures["fvd"]["15"]["4"]
    assert len(set(distances["samples"])) == 3
    assert distances["mean_of_samples"] == pytest.approx(np.mean(distances["samples"]))
    assert distances["ratio_to_real"] == pytest.approx(distances["mean_of_samples"] / distances["real_against_real"])


def test_unconditional_distances_at_fewer_clips_are_those_of_a_shorter_run(tmp_path):
    protocol = replace(UNCONDITIONAL, fvd_counts=(4,))
    long = run_with(protocol, tmp_path / "long", num_videos=7)["figures"]["fvd"]
    short = run_with(protocol, tmp_path / "short", num_videos=4)["figures"]["fvd"]
    for length in ("10", "20"):
        assert set(long[length]) == {"4", "7"}
        assert long[length]["4"] == pytest.approx(short[length]["4"])
        assert long[length]["4"]["one_sample"] != long[length]["7"]["one_sample"]


# ---------------------------------------------------------------------------------------------- resuming and processes
def test_a_killed_run_goes_on_and_ends_with_the_figures_of_one_that_was_not(tmp_path):
    options = {"num_videos": 7, "num_samples": 2, "batch_size": 4}
    whole = run_with(PAPER, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run_with(PAPER, tmp_path / "killed", Noisy(PAPER, stop_after=4), **options)
    (tmp_path / "killed" / "paper-parts" / ".part-0000004-x1y2.npz").write_bytes(b"half written")
    again = Noisy(PAPER)
    resumed = run_with(PAPER, tmp_path / "killed", again, **options)
    assert again.asked == [4, 5, 6]
    assert resumed["figures"] == whole["figures"]
    assert not list((tmp_path / "killed" / "paper-parts").glob(".*"))


def test_a_damaged_part_is_made_again(tmp_path):
    whole = run_with(PAPER, tmp_path, num_videos=6, batch_size=2)
    part = tmp_path / "paper-parts" / "part-clips-0000002.npz"
    os.truncate(part, part.stat().st_size // 2)
    source = Noisy(PAPER)
    assert run_with(PAPER, tmp_path, source, num_videos=6, batch_size=2)["figures"] == whole["figures"]
    assert source.asked == [2, 3]


def test_the_batch_size_does_not_change_the_figures(tmp_path):
    reports = [run_with(MCVD, tmp_path / str(b), num_videos=5, num_samples=2, batch_size=b) for b in (1, 6, 16)]
    flat = [[value for row in rows(report) for value in row.values.values()] for report in reports]
    assert flat[0] == pytest.approx(flat[1], rel=1e-6)
    assert flat[0] == pytest.approx(flat[2], rel=1e-6)


def test_two_processes_make_the_figures_of_one(tmp_path):
    barrier, reports, sources = threading.Barrier(2), {}, [Noisy(PAPER), Noisy(PAPER)]

    def work(rank):
        workers = Workers(rank, 2, lambda: barrier.wait(60))
        reports[rank] = run_with(PAPER, tmp_path / "two", sources[rank], workers, num_videos=7, batch_size=2)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports[1] is None
    assert [source.asked for source in sources] == [[0, 1, 4, 5], [2, 3, 6]]
    assert reports[0]["figures"] == run_with(PAPER, tmp_path / "one", num_videos=7, batch_size=2)["figures"]


def test_parts_of_other_settings_are_refused_and_the_difference_is_named(tmp_path):
    run_with(PAPER, tmp_path, num_videos=2)
    with pytest.raises(ValueError, match=r"sampling was \{'strength': 40\}, now \{'strength': 3\}. Expected the same"):
        run_with(PAPER, tmp_path, Noisy(PAPER, strength=3), num_videos=2)
    with pytest.raises(ValueError, match=r"num_videos was 2, now 3\. Expected the same settings, or another folder"):
        run_with(PAPER, tmp_path, num_videos=3)


def test_the_cache_of_baselines_changes_no_figure_and_saves_their_measurement(tmp_path, monkeypatch):
    protocol = replace(OPENSTL, metrics=("mse",))
    figures, measured = [], []
    for out, strength, cache in (("a", 40, None), ("b", 40, tmp_path), ("c", 40, tmp_path), ("d", 9, tmp_path)):
        scorer = Scorer(protocol, (20,), cache=cache)
        values = scorer._values
        monkeypatch.setattr(scorer, "_values", lambda *args, f=values: measured.append(out) or f(*args))  # noqa: B023
        source = Noisy(protocol, strength)
        run = Run.of(source, protocol, num_videos=4, num_samples=1)
        figures.append(evaluate(source, run, tmp_path / out, scorer, progress=False)["figures"]["mse"])
    assert figures[0] == figures[1] == figures[2]
    assert figures[3]["one_sample"] != figures[0]["one_sample"]
    assert figures[3]["black_frame"] == figures[0]["black_frame"]
    assert [measured.count(out) for out in "abcd"] == [6, 6, 1, 1]  # black, last, real, two limits and the model


def test_a_damaged_cache_file_is_measured_again(tmp_path):
    scores = {"a": np.arange(3.0)}
    clips = [np.zeros((1, 2), np.uint8)]
    for _ in range(2):
        assert np.array_equal(remember(tmp_path, "x", clips, lambda: scores)["a"], scores["a"])
    (file,) = tmp_path.glob("*.npz")
    file.write_bytes(b"PK cut")
    assert np.array_equal(remember(tmp_path, "x", clips, lambda: scores)["a"], scores["a"])
    with np.load(file) as stored:
        assert np.array_equal(stored["a"], scores["a"])
    assert "y" in remember(tmp_path, "other settings", clips, lambda: {"y": scores["a"]})
    assert "z" in remember(tmp_path, "x", [clips[0] + np.uint8(1)], lambda: {"z": scores["a"]})


def test_missing_parts_are_an_error_and_not_a_figure(tmp_path):
    with pytest.raises(OSError, match="holds 4 clips, expected 7: run the command again"):
        run_with(PAPER, tmp_path, workers=Workers(0, 2), num_videos=7, batch_size=2)


@pytest.mark.parametrize(
    ("protocol", "options", "reason"),
    [
        (PAPER, {"num_videos": 1}, "`--num-videos` is 1, expected at least 2: FVD"),
        (OPENSTL, {"num_videos": 0}, "`--num-videos` is 0, expected at least 1"),
        (PAPER, {"num_samples": 0}, "`--num-samples` is 0, expected at least 1"),
        (PAPER, {"batch_size": 0}, "`--batch-size` is 0, expected at least 1"),
        (UNCONDITIONAL, {"lengths": [12]}, r"`--num-frames` is \[12\], expected some of \[10, 20\]"),
        (UNCONDITIONAL, {"lengths": []}, r"`--num-frames` is \[\], expected some of \[10, 20\]"),
    ],
)
def test_numbers_that_no_protocol_takes_are_refused(protocol, options, reason):
    with pytest.raises(ValueError, match=reason):
        Run.of(Noisy(protocol), protocol, **options)

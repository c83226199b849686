"""A table in parts: joined they are what one run would have written, and what is missing or foreign is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import smooth_volume, write_slices

from cov3d import Inference, NetSettings, Preprocessing, build, save_model
from cov3d import console as talk
from cov3d.cli import app
from cov3d.config import Reading
from cov3d.errors import Cov3dError, SettingError
from cov3d.results.claim import claimed
from cov3d.results.ensemble import Ensemble
from cov3d.results.parts import collect, part_file
from cov3d.shards import Shard

NET = NetSettings(base_width=4, penultimate=8)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "answers" / "p.csv"


@pytest.fixture
def shares(run: Callable, output: Path) -> Callable:
    """A function that does all shares but those left out, and gives their files."""

    def answer(count: int, *left_out: int, **options) -> list[Path]:
        done = [Shard(number, count) for number in range(count) if number not in left_out]
        for shard in done:
            run(output, shard=shard, **options)
        return [part_file(output, shard) for shard in done]

    return answer


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("count", [2, 3, 7])
def test_joined_parts_are_what_one_run_writes(
    count: int, run: Callable, shares: Callable, output: Path, tmp_path: Path, timeless: Callable, five: Path
):
    (five / "cut.nii.gz").write_bytes(b"\x1f\x8b\x08")
    rows = run(tmp_path / "whole.csv", submission=tmp_path / "lists")
    parts = shares(count)
    before = files(output.parent)
    assert [row.cells() | {"seconds": ""} for row in collect(output, submission=tmp_path / "joined")] == [
        row.cells() | {"seconds": ""} for row in rows
    ]
    assert timeless(output) == timeless(tmp_path / "whole.csv")
    assert output.with_name("p.csv.json").read_bytes() == (tmp_path / "whole.csv.json").read_bytes()
    assert files(tmp_path / "joined") == files(tmp_path / "lists")
    assert {
        name: content for name, content in files(output.parent).items() if name not in ("p.csv", "p.csv.json")
    } == before
    assert len(parts) == count


def test_a_joined_table_is_gone_on_with(run: Callable, shares: Callable, output: Path, monkeypatch: pytest.MonkeyPatch):
    shares(2)
    collect(output)
    joined = output.read_bytes()
    monkeypatch.setattr(Ensemble, "answer", None)  # nothing is left to be answered
    run(output, resume=True)
    assert output.read_bytes() == joined


def test_masks_of_scans_of_one_name_in_different_shares_are_kept_apart(
    run: Callable, output: Path, tmp_path: Path, timeless: Callable
):
    heads = ("classes", "masks")
    torch.manual_seed(0)
    model = save_model(tmp_path / "m.safetensors", build(NET, heads), NET, Preprocessing(width=32), "both", {}, heads)
    scans = [write_slices(tmp_path / folder / "ct", smooth_volume(6, 32, seed=k)) for k, folder in enumerate("ab")]
    options = {"scans": scans, "models": [model]}
    run(tmp_path / "whole.csv", masks=tmp_path / "masks", **options)
    for number in (0, 1):
        run(output, shard=Shard(number, 2), masks=tmp_path / "shared", **options)
    collect(output)
    assert len(files(tmp_path / "masks")) == 2
    assert files(tmp_path / "shared") == files(tmp_path / "masks")
    assert timeless(output) == timeless(tmp_path / "whole.csv")
    names = [
        [record["mask"] for record in json.loads(table.read_text())["scans"].values()]
        for table in (output.with_name("p.csv.json"), tmp_path / "whole.csv.json")
    ]
    assert names[0] == names[1]


def cut(part: Path, lines: int, torn: int = 0) -> None:
    """Leave so many lines of a table, and some characters of the next."""
    text = part.read_text().splitlines(keepends=True)
    part.write_text("".join(text[:lines]) + text[lines][:torn])


def refused(output: Path, *words: str, error: type[Cov3dError] = Cov3dError, **options) -> None:
    """Nothing is collected, nothing is written, and the sentence has these words."""
    before = files(output.parent) if output.parent.exists() else {}
    with pytest.raises(error) as raised:
        collect(output, **options)
    for word in words:
        assert word in str(raised.value), str(raised.value)
    assert (files(output.parent) if output.parent.exists() else {}) == before


def test_missing_shares_are_named_with_the_command_that_does_them(shares: Callable, output: Path):
    refused(output, "no part lies beside it", "p.0-of-8.csv")
    shares(8, 0, 3, 4, 5)
    refused(output, "shares 0,3-5 of 8 are not there", f"--output {output} --resume --shard I/8' for I = 0,3-5")
    shares(8, 1, 2, 4, 5, 6, 7, resume=True)
    shares(8, 0, 1, 2, 3, 5, 6, 7)
    refused(output, "share 5 of 8 is not there", "--shard 5/8'")


def test_a_share_that_was_killed_is_named_and_done_by_resume(
    run: Callable, shares: Callable, output: Path, tmp_path: Path, timeless: Callable
):
    run(tmp_path / "whole.csv")
    first, second = shares(2)
    cut(first, 2)
    refused(output, "share 0 of 2 lacks 2 scans", "--resume --shard 0/2'")
    cut(second, 1, torn=20)
    refused(output, "share 0 of 2 lacks 2 scans", "share 1 of 2 was killed within a row", "for I = 0-1")
    shares(2, resume=True)
    collect(output)
    assert timeless(output) == timeless(tmp_path / "whole.csv")


@pytest.mark.parametrize("left", ["claim", "header"])
def test_a_share_that_was_killed_at_once_is_as_if_it_were_not_there(left: str, shares: Callable, output: Path):
    part = shares(2)[1]
    part.with_name(part.name + ".json").unlink()
    part.write_bytes(b"" if left == "claim" else part.read_bytes().partition(b"\n")[0] + b"\n")
    refused(output, "share 1 of 2 is not there")
    shares(2, 0, resume=True)
    assert len(collect(output)) == 5


def test_a_share_that_is_being_answered_is_waited_for(shares: Callable, output: Path):
    part = shares(2)[1]
    with claimed(part):
        refused(output, "p.1-of-2.csv: another run is writing it")


def test_a_table_that_is_there_is_joined_again_only_if_asked(shares: Callable, output: Path):
    shares(2)
    collect(output)
    refused(output, "p.csv exists; say --overwrite", error=SettingError)
    assert len(collect(output, overwrite=True)) == 5


def test_parts_of_other_makes_are_refused_with_their_names(
    run: Callable, shares: Callable, output: Path, tmp_path: Path, five: Path
):
    part = shares(2)[1]
    torch.manual_seed(1)
    other = save_model(tmp_path / "o.safetensors", build(NET), NET, Preprocessing(width=32), "both", {})
    ways = [{"models": [other]}, {"inference": Inference(threshold=0.2)}, {"inference": Inference(tta=False)}]
    ways.append({"reading": Reading(strict=True)})
    for way in ways:
        run(output, shard=Shard(1, 2), overwrite=True, **way)
        refused(output, "p.1-of-2.csv made with other models or settings than p.0-of-2.csv", error=SettingError)
    run(output, shard=Shard(1, 2), overwrite=True, scans=sorted(five.iterdir())[:3])
    refused(output, "p.1-of-2.csv made when other scans were asked for than for p.0-of-2.csv", error=SettingError)
    shares(2, 0, overwrite=True)
    part.rename(part.with_name("p.1-of-3.csv"))
    refused(output, "p.0-of-2.csv and its like; p.1-of-3.csv and its like", "move away", error=SettingError)
    part.with_name("p.1-of-3.csv").rename(part.with_name("q.0-of-2.csv"))
    part.with_name("p.1-of-2.csv.json").rename(part.with_name("q.0-of-2.csv.json"))
    refused(part.with_name("q.csv"), "its .json says that it is share 1/2", error=SettingError)


def test_a_scan_in_two_parts_is_refused(shares: Callable, output: Path):
    first, second = shares(2)
    line = first.read_text().splitlines(keepends=True)[1]
    second.write_text(second.read_text() + line)
    refused(output, "ct_1 is in p.0-of-2.csv and in p.1-of-2.csv", error=SettingError)


def test_scans_that_are_named_must_be_in_a_part(shares: Callable, output: Path, tmp_path: Path, five: Path):
    shares(2)
    new = write_slices(five / "ct_11", smooth_volume(6, 32, seed=11))
    refused(output, "no part holds 1 scan that you named", "ct_11", "for I = 0-1", scans=[five])
    assert [row.scan for row in collect(output, [five / "ct_9", five / "ct_2"])] == ["ct_2", "ct_9"]
    assert new.is_dir()


def test_scans_that_come_later_move_on_to_their_shares(
    run: Callable, shares: Callable, output: Path, tmp_path: Path, timeless: Callable, five: Path
):
    shares(3)
    write_slices(five / "ct_0", smooth_volume(6, 32, seed=7))
    run(output, shard=Shard(0, 3), resume=True)
    refused(output, "made when other scans were asked for", error=SettingError)
    shares(3, 0, resume=True)
    collect(output)
    run(tmp_path / "whole.csv")
    assert timeless(output) == timeless(tmp_path / "whole.csv")
    assert output.with_name("p.csv.json").read_bytes() == (tmp_path / "whole.csv.json").read_bytes()


def test_probabilities_that_rounding_makes_alike_name_the_same_severity_as_before(
    run: Callable, shares: Callable, output: Path, monkeypatch: pytest.MonkeyPatch
):
    answer = Ensemble.answer
    severity = (0.2500001, 0.2499998, 0.2500002, 0.2499999)
    monkeypatch.setattr(Ensemble, "answer", lambda *arguments: replace(answer(*arguments), severity=severity))
    shares(2)
    assert [row.cells()["severity"] for row in collect(output)] == ["severe"] * 5


# The command line


@pytest.fixture
def cov3d(five: Path, network: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in words])
        return int(ended.value.code or 0), *capfd.readouterr()

    yield call
    talk.set_quiet(False)


ARRAY = {
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_ARRAY_TASK_MIN": "0",
    "SLURM_ARRAY_TASK_MAX": "1",
    "SLURM_ARRAY_TASK_COUNT": "2",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2"}
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "who", "code"),
    [(ARRAY, "a Slurm array", 3), (TORCHRUN, "torchrun", 0), (SRUN, "srun", 3)],
    ids=["array", "torchrun", "srun"],
)
def test_a_share_that_the_environment_knows_is_said_once(
    environment: dict, who: str, code: int, cov3d: Callable, run: Callable, five: Path, monkeypatch: pytest.MonkeyPatch
):
    """torchrun ends all processes when one ends with another code than 0, so a scan that failed is left to --collect."""
    for file in (five / "ct_2").iterdir():
        file.write_bytes(b"")
    infer = ("infer", "scans", "--model", "net.safetensors", "--device", "cpu")
    with monkeypatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        ended, out, err = cov3d(*infer)
        assert ended == code
        assert err.count(f"note: share 1/2, found in the environment of {who}; say --shard 0/1 for all") == 1
        assert "share 1/2, 2 of 5 scans" in err
        assert out == "predictions.1-of-2.csv: 1 answered, 1 failed, 2 asked\n"
        assert cov3d(*infer, "--shard", "0/2", "--quiet") == (
            0,
            "predictions.0-of-2.csv: 3 answered, 0 failed, 3 asked\n",
            "",
        )
    ended, out, err = cov3d("infer", "scans", "--collect")
    assert (ended, out) == (3, "predictions.csv: 4 answered, 1 failed, 5 asked\n")
    assert "2 parts stay beside predictions.csv" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--shard", "0/2"], "--shard"),
        (["--model", "net.safetensors", "--resume"], "--model, --resume"),
        (["--masks", "masks"], "--masks"),
        (["--threshold", ".3"], "--threshold"),
    ],
)
def test_what_means_nothing_beside_collect_is_to_be_left_out(words: list[str], named: str, cov3d: Callable):
    code, _, err = cov3d("infer", "--collect", *words)
    assert code == 2
    assert named in err
    assert "leave them out" in err


def test_lists_for_the_challenge_are_of_all_scans(cov3d: Callable, tmp_path: Path):
    code, _, err = cov3d("infer", "scans", "--model", "net.safetensors", "--shard", "0/2", "--submission", "lists")
    assert code == 2
    assert "say it with --collect" in err
    assert not (tmp_path / "lists").exists()

"""The front door: each command is a docstring and a few lines over one function of the library."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cov3d.config import (
    Architecture,
    Augmentation,
    Inference,
    LossSettings,
    Machine,
    Messages,
    Method,
    NetSettings,
    PictureSettings,
    Preprocessing,
    Pretraining,
    Reading,
    RunSettings,
    Saving,
    Training,
    check_said,
)
from cov3d.console import complain, muted, printable, say, set_quiet, show
from cov3d.errors import Cov3dError
from cov3d.launch import find_launch
from cov3d.options import expand
from cov3d.runs import MOST_FOLDS, PRETRAINED
from cov3d.shards import WHOLE, Shard, find_shard
from cov3d.stopping import Stopped, interruptible, leaving

DONE, FAILED, SOME_SCANS_FAILED, STOPPED = 0, 1, 3, 75
LONGEST_TEXT = 120  # characters of a name or text that is not ours, in an error

app = typer.Typer(
    name="cov3d",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyArgument = Annotated[
    Path, typer.Argument(metavar="STUDY", help="The study's folder or its table.", show_default="this folder")
]
CacheOption = Annotated[Path, typer.Option(help="Folder of the tensor caches.")]
OutputDirOption = Annotated[Path | None, typer.Option(help="The run's folder.", show_default="outputs/TASK")]
RecipeOption = Annotated[
    str | None, typer.Option(help="Published settings by name ('cov3d recipes'); what you say besides overrides them.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with a run that was stopped, where it was saved last.")
]
ShardOption = Annotated[
    str | None,
    typer.Option(
        metavar="I/N", help="This process's share, from 0/N.", show_default="torchrun's or Slurm's environment"
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote.")]


def command(
    name: str | None = None, hidden: bool = False, stopped: str = "say --overwrite to begin again"
) -> Callable[[Callable[..., int | None]], Callable[..., Any]]:
    """Make a function a command: settings groups become options, errors one sentence, its result the exit code.

    ``stopped`` is what to do after Ctrl-C.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., Any]:
        app.command(name, hidden=hidden)(_guarded(expand(function), stopped))
        return function

    return decorate


def _guarded(run: Callable[..., int | None], stopped: str) -> Callable[..., None]:
    @functools.wraps(run)
    def guarded(**values: Any) -> None:
        set_quiet(values["quiet"])
        try:
            with interruptible():
                code = run(**values) or DONE
        except KeyboardInterrupt as stop:
            complain(f"stopped by {stop or 'Ctrl-C'}; {stopped}")
            code = STOPPED
        except BrokenPipeError:  # whoever read our results has heard enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = DONE
        except Stopped as stop:
            if str(stop):  # of several processes one speaks
                complain(f"{stop}; {stopped}")
            code = STOPPED
        except Cov3dError as error:
            if values["debug"]:
                raise
            complain(f"error: {error}")
            code = error.exit_code
        except Exception as error:
            if values["debug"]:
                raise
            complain(f"error: {_sentence(error)}")
            code = FAILED
        raise typer.Exit(code)

    return guarded


def _sentence(error: Exception) -> str:
    """An error that nobody raised on purpose: what the operating system refuses is not ours to be told of."""
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return ": ".join([*map(_short, names), error.strerror])
    return f"unexpected {type(error).__name__}: {_short(str(error))}; run again with --debug and report it"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _version(asked: bool) -> None:
    if asked:
        import cov3d

        show(f"cov3d {cov3d.__version__}")
        raise typer.Exit


@app.callback()
def _cov3d(
    version: Annotated[
        bool, typer.Option("--version", "-v", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Chest CT scans in; presence and severity of COVID-19 out. Research software, not a medical device."""


@command()
def demo(
    messages: Messages,
    machine: Machine,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for all that the demo makes.")] = Path(
        "cov3d-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawn chests and of the training.")] = 0,
    overwrite: OverwriteOption = False,
) -> None:
    """See everything work: drawn chests, preprocess, train, infer, evaluate. A few minutes, no download."""
    from cov3d.demo import demo

    demo(folder, seed=seed, machine=machine, overwrite=overwrite)


@command()
def phantom(
    messages: Messages,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the study.")],
    scans: Annotated[int, typer.Option(help="How many scans.")] = 60,
    format: Annotated[
        Literal["jpeg", "nifti", "dicom", "mha", "nrrd"], typer.Option(help="Form of the scans.")
    ] = "jpeg",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same study.")] = 0,
    labels: Annotated[Literal["true", "random"], typer.Option(help="random: labels that say nothing.")] = "true",
    size: Annotated[int, typer.Option(help="Width and height of a slice, in pixels.", min=32, max=512)] = 128,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a study of drawn chests with lesions of known severity, laid out as COV19-CT-DB."""
    from cov3d.phantom import write_study

    study = write_study(folder, scans=scans, format=format, seed=seed, labels=labels, size=size, overwrite=overwrite)
    show(f"{study}: {scans} drawn scans")


@command(stopped="nothing was written")
def check(
    messages: Messages,
    reading: Reading,
    machine: Machine,
    study: StudyArgument = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of a table.")] = False,
) -> int:
    """Tell what a study holds, and what in it would falsify results: twins, leaks, broken scans, shortcuts."""
    from cov3d.scans.check import check, report_json, report_text
    from cov3d.scans.study import read_study

    report = check(read_study(study), reading, machine)
    show(report_json(report) if as_json else report_text(report))
    return report.exit_code


@command(stopped="nothing was left behind")
def doctor(
    messages: Messages,
    cache: CacheOption = Path("cache"),
    output_dir: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("outputs"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or cuda:1.")] = Machine.device,
    as_json: Annotated[bool, typer.Option("--json", help="Print data instead of lines.")] = False,
) -> int:
    """Tell whether this machine can do the work: versions, GPU, 3D convolution, memory, disk, limits; what to do if not."""
    from cov3d.checkup.doctor import doctor
    from cov3d.checkup.findings import report_json, report_text

    report = doctor(cache, output_dir, Machine(device=device))
    show(report_json(report) if as_json else report_text(report))
    if report.sentence:
        complain(report.sentence)
    return report.exit_code


@command(stopped="run the same command again: what is made is kept")
def preprocess(
    messages: Messages,
    preprocessing: Preprocessing,
    reading: Reading,
    machine: Machine,
    study: StudyArgument = Path(),
    cache: CacheOption = Path("cache"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every tensor whole; make again what was cut or changed.")
    ] = False,
    shard: ShardOption = None,
) -> int:
    """Turn a study's scans into tensors, once; run again, it makes only what is missing or has changed."""
    from cov3d.scans.cache import fill_cache
    from cov3d.scans.series import every_series
    from cov3d.scans.study import read_study

    read = every_series(read_study(study), reading)
    for note in read.warnings:
        say(f"note: {note}")
    share = _share(shard)
    filled = fill_cache(read.rows, preprocessing, cache, machine, reading, share, verify)
    kept, asked = len(filled.entries) - filled.made, len(filled.jobs)
    are = "sound" if verify else "kept"
    show(f"{filled.folder}: {filled.made} made, {kept} {are}, {len(filled.failures)} failed, {asked} asked")
    return _list_failures(filled.failures, of=asked)


@command(stopped="say --resume to go on")
def train(
    messages: Messages,
    settings: RunSettings,
    saving: Saving,
    machine: Machine,
    study: StudyArgument = Path(),
    recipe: RecipeOption = None,
    cache: CacheOption = Path("cache"),
    output_dir: OutputDirOption = None,
    overwrite: OverwriteOption = False,
    all_data: Annotated[
        bool, typer.Option("--all-data", help="Train on every labelled scan; keep the last epoch; score nothing.")
    ] = False,
    resume: ResumeOption = False,
) -> int:
    """Fit a network to a study, keeping its best epoch; preprocess first what the cache lacks."""
    from cov3d.scans.study import read_study
    from cov3d.training.train import train

    run = train(read_study(study), settings, machine, cache, output_dir, overwrite, all_data, resume, saving)
    show(str(run.folder))
    return _list_failures(run.failures)


@command(stopped="run the same command again: folds that are trained stay")
def cross_validate(
    messages: Messages,
    settings: RunSettings,
    saving: Saving,
    machine: Machine,
    study: StudyArgument = Path(),
    recipe: RecipeOption = None,
    folds: Annotated[int, typer.Option(help="How many folds.", min=2, max=MOST_FOLDS)] = 5,
    fold: Annotated[int | None, typer.Option(help="Train this one only, from 0.", min=0)] = None,
    collect: Annotated[bool, typer.Option("--collect", help="Train nothing; pool the folds' answers.")] = False,
    cache: CacheOption = Path("cache"),
    output_dir: OutputDirOption = None,
    overwrite: OverwriteOption = False,
    shard: ShardOption = None,
) -> int:
    """Train a network for each fold, and score every training scan by the one that has not seen it."""
    from cov3d.scans.study import read_study
    from cov3d.training.cross_validate import cross_validate

    share = WHOLE if fold is not None or collect else _share(shard)
    read = read_study(study)
    run = cross_validate(read, settings, machine, folds, fold, cache, output_dir, overwrite, collect, saving, share)
    show(str(run.folder))
    return _list_failures(run.failures)


@command(stopped="say --resume to go on")
def pretrain(
    messages: Messages,
    pretraining: Pretraining,
    preprocessing: Preprocessing,
    net: NetSettings,
    loss: LossSettings,
    training: Training,
    augmentation: Augmentation,
    pictures: PictureSettings,
    reading: Reading,
    saving: Saving,
    machine: Machine,
    study: Annotated[
        Path, typer.Argument(metavar="STUDY", help="The study, or the folder of pictures.", show_default="this folder")
    ] = Path(),
    method: Annotated[
        Method, typer.Option(help="What is learnt: pictures, masks, a teacher's masks, or both.")
    ] = "segmentation",
    cache: CacheOption = Path("cache"),
    output_dir: Annotated[Path | None, typer.Option(help="The run's folder.", show_default="pretrained/METHOD")] = None,
    overwrite: OverwriteOption = False,
    resume: ResumeOption = False,
) -> int:
    """Give a network knowledge before it sees a study; its file is for 'train --weights'."""
    from cov3d.scans.study import read_study
    from cov3d.training.pictures import pretrain_pictures
    from cov3d.training.pretrain import pretrain

    output = output_dir or PRETRAINED / method
    check_said(method, preprocessing, loss, augmentation, reading, pictures)
    if method == "imagenet":
        pretraining.check_used(method)
        run = pretrain_pictures(study, pictures, training, net, machine, output, overwrite, resume, saving)
    else:
        settings = RunSettings("severity", preprocessing, net, loss, training, augmentation, reading)
        read = read_study(study)
        run = pretrain(read, method, settings, pretraining, machine, cache, output, overwrite, resume, saving)
    show(str(run.folder))
    return _list_failures(run.failures)


@command()
def recipes(messages: Messages) -> None:
    """List the published settings, by name, with their published macro F1, and those of each way of pretraining."""
    from cov3d.recipes import METHODS, RECIPES, describe

    for recipe in RECIPES.values():
        show(describe(recipe))
    for method in METHODS.values():
        show(f"pretrain --method {describe(method)}")


@command()
def show_batch(
    messages: Messages,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    reading: Reading,
    machine: Machine,
    study: StudyArgument = Path(),
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write.")] = Path("batch.png"),
    architecture: Annotated[Architecture, typer.Option(help="Whose published augmentation.")] = "resnet18",
    recipe: RecipeOption = None,
    scans: Annotated[int | None, typer.Option(help="How many scans; 8 if not said.", min=1, max=64)] = None,
    steps: Annotated[bool, typer.Option("--steps", help="Show each step by itself, on one scan.")] = False,
    cache: CacheOption = Path("cache"),
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of what is drawn; 0 if not said.")] = None,
    overwrite: OverwriteOption = False,
) -> int:
    """Draw training scans as the network would see them, three planes each, into a PNG."""
    from cov3d.scans.study import read_study
    from cov3d.training.show_batch import show_study

    net = NetSettings(architecture)
    settings = RunSettings(preprocessing=preprocessing, net=net, augmentation=augmentation, reading=reading)
    failures = show_study(read_study(study), settings, machine, cache, output, scans, steps, seed, overwrite)
    show(str(output))
    return _list_failures(failures)


@command(stopped="say --resume to go on")
def infer(
    messages: Messages,
    inference: Inference,
    reading: Reading,
    machine: Machine,
    scans: Annotated[list[Path] | None, typer.Argument(metavar="SCANS", help="Scans, or folders of scans.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The table to write.")] = Path("predictions.csv"),
    model: Annotated[
        list[Path] | None,
        typer.Option(help="A model file or a run's folder; repeat for an ensemble.", show_default="all under outputs/"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the answers that are there; do the rest.")] = False,
    overwrite: OverwriteOption = False,
    submission: Annotated[Path | None, typer.Option(help="Also write the challenge's class lists here.")] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write masks of lesions here, as NIfTI on each scan.")
    ] = None,
    shard: ShardOption = None,
    collect: Annotated[bool, typer.Option("--collect", help="Answer nothing; join the parts of the table.")] = False,
    output_csv: Annotated[Path | None, typer.Option(hidden=True)] = None,
    scan: Annotated[list[Path] | None, typer.Option(hidden=True)] = None,
    scan_dir: Annotated[list[Path] | None, typer.Option(hidden=True)] = None,
) -> int:
    """Answer how likely COVID-19 is, and how severe, one row for every scan."""
    from cov3d.results.infer import infer, summary
    from cov3d.results.parts import check_unsaid, part_file
    from cov3d.results.parts import collect as join

    asked = [*(scans or []), *(scan or []), *(scan_dir or [])]
    output = output_csv or output
    share = WHOLE if collect else _share(shard)
    if collect:
        check_unsaid({"--model": model, "--shard": shard, "--masks": masks, "--resume": resume}, inference)
        rows = join(output, asked, overwrite, submission, reading)
    else:
        models = model or []
        rows = infer(asked, models, output, inference, machine, resume, overwrite, submission, reading, masks, share)
    show(summary(rows, part_file(output, share)))
    return _list_failures({row.path: row.error for row in rows if row.error}, of=len(rows))


def _evaluate(
    messages: Messages,
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="A table that infer wrote.")],
    study: StudyArgument = Path(),
    output: Annotated[
        Path | None, typer.Option(help="Where scores go.", show_default="PREDICTIONS-metrics.json")
    ] = None,
) -> None:
    """Score predictions against a study's labels: macro F1 with its interval, F1 of each class, confusion."""
    from cov3d.commit import commit_json
    from cov3d.results.evaluate import evaluate, report
    from cov3d.scans.study import read_study

    result = evaluate(predictions, read_study(study))
    commit_json(output or predictions.with_name(f"{predictions.stem}-metrics.json"), result)
    show(report(result))


command("evaluate", stopped="nothing was written")(_evaluate)
command("validate", hidden=True)(_evaluate)  # FastApp's name for it


def _share(said: str | None) -> Shard:
    """The share of the work that is this process's; told, if nobody said it."""
    share = find_shard(said)
    if share.found_in:
        say(f"note: share {share}, found in the environment of {share.found_in}; say --shard 0/1 for all")
    return share


def _list_failures(failures: dict[str, str], of: int | None = None) -> int:
    """Name every failed scan, and give the exit code: 1 if none is left.

    torchrun ends all others when one ends with another code than 0; files and rows tell of the scans that failed.
    """
    for scan, cause in failures.items():
        if not muted():
            complain(f"{printable(scan)}: {cause}")
    if not failures or find_launch().found_in == "torchrun":
        return DONE
    return FAILED if of == len(failures) else SOME_SCANS_FAILED


def main() -> None:
    """Run the command line."""
    with leaving():  # a scheduler's stop is an orderly one, as Ctrl-C is
        app()

"""The laws of a Beam program's command line: what is an option, whose it is, and what is refused."""

import pytest
import typer
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    StandardOptions,
    WorkerOptions,
)

from jobs.engines import beam_runner
from jobs.engines.beam_runner import UnknownOption
from jobs.features.click_stream import program as click_stream
from jobs.images import pipeline
from jobs.sequences.beam import behavior_sequences, item_statistics


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--runer=FlinkRunner"], "^--runer is known neither to this program nor to Beam: say --runner, or"),
        (["--runner", "FlinkRunner", "--paralelism", "4"], "^--paralelism is known neither .*: say --parallelism, or"),
        (["--job-endpont=a:1"], "^--job-endpont .*: say --job_endpoint, or"),
        (["--quite-another"], "^--quite-another .*: see --help, or"),
        (["--runner=FlinkRunner", "stray"], "^stray is known"),
        (["stray"], "^stray is known"),
        (["-x"], "^-x is known"),
    ],
)
def test_an_option_that_nobody_knows_is_refused_with_the_nearest_one(given, told) -> None:
    with pytest.raises(UnknownOption, match=told):
        beam_runner.options(given)


def test_every_option_of_every_runner_that_beam_knows_is_taken() -> None:
    given = ["--runner=FlinkRunner", "--flink_master", "host:8081", "--parallelism=4", "--no_use_public_ips"]
    chosen = beam_runner.options([*given, "--project=p", "--experiments=a", "--experiments=b"])
    assert chosen.view_as(StandardOptions).runner == "FlinkRunner"
    assert chosen.view_as(FlinkRunnerOptions).flink_master == "host:8081"
    assert chosen.view_as(GoogleCloudOptions).project == "p"
    assert chosen.view_as(WorkerOptions).use_public_ips is False


def test_what_stands_behind_two_dashes_is_passed_on_unread() -> None:
    chosen = beam_runner.options(["--runner=FlinkRunner", "--", "--checkpointing_interval=60000"])
    assert chosen.get_all_options(retain_unknown_options=True)["checkpointing_interval"] == "60000"
    assert not beam_runner.is_local(chosen)


def test_without_a_runner_the_pipeline_runs_in_this_process() -> None:
    assert beam_runner.is_local(beam_runner.options([]))
    assert not beam_runner.is_local(beam_runner.options(["--", "--runner=FlinkRunner"]))
    assert beam_runner.in_one_process(beam_runner.options([]))
    assert not beam_runner.in_one_process(beam_runner.options(["--direct_running_mode=multi_processing"]))


PROGRAMS = {
    behavior_sequences: ["--raw", "r", "--out", "o"],
    item_statistics: ["--sequences", "s", "--out", "o"],
    pipeline: ["--raw", "r", "--out", "o"],
    click_stream: ["workspace", "--from", "s"],
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_program_hands_beams_options_on_and_what_is_unread_behind_them(program, monkeypatch) -> None:
    heard, told = [], beam_runner.beam_args

    def hear(context):
        heard.extend(told(context))
        raise typer.Exit

    monkeypatch.setattr(beam_runner, "beam_args", hear)
    with pytest.raises(SystemExit):
        program.main([*PROGRAMS[program], "--runner=FlinkRunner", "--", "--checkpointing_interval=1"])
    assert heard == ["--runner=FlinkRunner", "--", "--checkpointing_interval=1"]


def test_a_mistyped_option_of_the_programs_own_is_refused_with_its_right_name(tmp_path) -> None:
    given = ["--sequences", str(tmp_path), "--out", str(tmp_path / "out"), "--sequence=again"]
    with pytest.raises(UnknownOption, match="--sequence is known neither to this program nor to Beam: say --sequences"):
        item_statistics.main(given)

"""What a run says when it has ended."""

from pathlib import Path

from cellsignal import files, shapes


def summary(run: Path) -> str:
    """The rungs of a finished run and where its submission and report lie."""
    from cellsignal.decide.tables import rungs_table  # pulls in pandas and SciPy

    metrics = files.read_json(run / "metrics.json", shapes.Metrics)
    ladder = rungs_table(metrics)
    text = "no answers are known for these plates, so there is no ladder"
    if len(ladder):
        text = ladder.to_string(float_format="{:.3f}".format, na_rep="")
    if note := metrics.get("statistics_note"):
        text += f"\n\n{note}"
    written = {"submission": run / "submission.csv", "report": run / "report.html"}
    return f"{text}\n\n" + "\n".join(f"{name:11} {path}" for name, path in written.items() if path.is_file())

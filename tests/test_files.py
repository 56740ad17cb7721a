"""Files: what a killed writer left is removed, and nothing else."""

from pathlib import Path

from cellsignal import files


def test_sweep_takes_our_own_orphans_in_our_own_rooms(tmp_path: Path) -> None:
    ours = [".partial-7-report.html", "weights/U2OS/.partial-12-model.json"]
    others = [".partial-notes.txt", "weights/.partial-draft", "thesis/.partial-7-chapter.tex", "weights/model.json"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    assert sorted(files.sweep(tmp_path, ("weights", "scores"))) == sorted(tmp_path / name for name in ours)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(tmp_path / name for name in others)

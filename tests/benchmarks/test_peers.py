import pytest

from benchmarks.peers import require_peers


def test_present_modules_pass() -> None:
    require_peers("numpy", "json")


def test_missing_modules_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        require_peers("numpy", "no_such_peer", "nor_this_one")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == "missing: no_such_peer, nor_this_one; install what benchmarks need: make bench-setup\n"

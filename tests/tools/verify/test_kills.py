import pytest

from tools.verify import kills


@pytest.mark.slow
def test_killed_run_is_always_readable_and_ends_with_the_bits_of_the_undisturbed(
    tmp_path,
):
    found = kills.kill(tmp_path, kills=6, seed=0)
    assert found.survived, found
    assert len(found.lost) == found.in_saves + found.elsewhere == 6
    assert found.in_saves >= 1, found
    assert found.passed_over == 0

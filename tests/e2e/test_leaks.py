"""The leak checks pass on the road, and each of the sabotaged roads fails the check that names its leak."""

from jobs.leak_canaries import release_canaries


def broken(findings) -> set[str]:
    return {one.check for one in findings if not one.holds}


def test_no_canary_is_seen_too_early_on_the_road_and_every_control_sings(walked, tmp_path):
    findings = list(release_canaries(walked, tmp_path, users=5))
    assert [one for one in findings if not one.holds] == []

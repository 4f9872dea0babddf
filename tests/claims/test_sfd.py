"""Every gate of SFD's claim can fail, and the judges are what they say they are."""

import pytest

from limbeck.claims.generators.sfd import WEIGHTS, judge

ARMS = ["SiD", "relabelled", "dropped", *(f"SFD {w:g}" for w in WEIGHTS)]
GOOD = {"seconds": 50.0}
for arm in ARMS:
    forgets = arm.startswith("SFD") or arm == "relabelled"
    GOOD |= {f"{arm} frechet": 2.0, **{f"{arm} frechet {c}": 3.0 for c in range(10)}}
    for name in ("net", "linear"):
        GOOD |= {f"{arm} {name} {what}": 0.98 if forgets else 0.02 for what in ("unlearning", "override")}
        GOOD |= {f"{arm} {name} remain accuracy": 0.97, f"{arm} {name} judge error": 0.01}


def lost(**changes):
    return [c.statement for c in judge(3 * [GOOD | changes]) if c.gated and not c.holds]


def test_good_figures_hold():
    assert not lost()


@pytest.mark.parametrize(
    ("figure", "value", "statement"),
    [
        ("SFD 0.1 net unlearning", 0.5, "that are none, net judge"),
        ("SFD 0.1 linear unlearning", 0.5, "that are none, linear judge"),
        ("SFD 0.1 net override", 0.5, "when asked, net judge"),
        ("SFD 0.1 linear override", 0.5, "when asked, linear judge"),
        ("SFD 0.1 net remain accuracy", 0.9, "accuracy on the nine classes"),
        ("SFD 0.1 frechet", 3.0, "distance of the nine classes"),
        ("SFD 0.1 frechet 8", 6.0, "override's own class"),
        ("dropped net unlearning", 0.9, "without the forget term"),
        ("SiD net unlearning", 0.9, "plain SiD"),
        ("seconds", 200.0, "CPU seconds"),
    ],
)
def test_every_gate_can_fail(figure, value, statement):
    assert any(statement in found for found in lost(**{figure: value}))

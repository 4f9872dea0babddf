"""Bytes that are alive: storages are counted once, when they come and when they go."""

import torch

from limbeck.training.live import LiveBytes, peak_bytes

KB = 1024


def numbers(kilobytes):
    return torch.zeros(256 * kilobytes)


def test_what_comes_is_counted_until_it_goes():
    seen = []
    with LiveBytes(each=seen.append) as live:
        a = torch.ones(256)
        b = a + a
        assert live.now == 2 * KB
        del a
        assert live.now == KB
        c = b.view(16, 16).t()  # the same storage
        b = None
        assert live.now == KB
        c.mul_(2)
        assert live.now == KB
        del c
    assert (live.now, live.peak) == (0, 2 * KB) and max(seen) == 2 * KB and len(seen) >= 4


def test_known_tensors_count_from_the_start_and_others_that_exist_never():
    known, other = numbers(3), numbers(5)
    with LiveBytes([known, known[:10]]) as live:
        assert live.now == 3 * KB
        other[:7].add_(1)
        other.view(-1)
        assert live.now == 3 * KB
        more = known + 1
        assert live.peak == 6 * KB
        del known
        assert live.now == 3 * KB and len(more) == 768


def test_a_backward_holds_its_graph_until_it_is_over():
    w = torch.ones(256, requires_grad=True)

    def work():
        h = w
        for _ in range(10):
            h = h.sin()  # keeps its input
        h.sum().backward()
        w.grad = None

    peak = peak_bytes(work, [w])
    assert 11 * KB <= peak <= 15 * KB

"""topics: the map and its names."""

from itertools import combinations

import numpy as np

from stages.topics.figures import map_figure


def test_names_on_the_map_do_not_overlap_and_every_topic_that_has_room_is_named() -> None:
    draw = np.random.default_rng(3)
    centres = draw.uniform(0, 100, size=(30, 2))
    clusters = np.repeat(np.arange(30), 20)
    positions = centres[clusters] + draw.normal(size=(600, 2))
    rows = [
        {"cluster": n, "topic": f"Topic Number {n}", "decision": "drop" if n % 5 == 0 else "keep", "size": 20}
        for n in range(30)
    ]
    figure = map_figure(positions, clusters, rows)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 30
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))

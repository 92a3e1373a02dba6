"""Models as they are now, and averages that go with them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from polyak.memory._check import require
from polyak.teachers.copies import copied
from polyak.teachers.matching import Place, check_fit, is_plain, kind_of
from polyak.teachers.replica import Replica
from polyak.teachers.treatment import Kind, Treatment

Sources = list[tuple[Replica, float]]
Anchors = Iterable[tuple[nn.Module, float]]


def sources_of(online: Replica, anchors: Anchors) -> Sources:
    """The online model and the anchors, each with its share.

    Raises:
        ValueError: if a share is out of range, or the tensors of an anchor do not fit.
    """
    sources: Sources = []
    for i, (anchor, share) in enumerate(anchors):
        require(share >= 0.0, f"anchors[{i}]", share, "of a share >= 0")
        replica = Replica(anchor)
        check_fit(replica.read(), online.read(), f"anchors[{i}]", "the online model")
        sources.append((replica, float(share)))
    rest = 1.0 - sum(share for _, share in sources)
    require(rest >= 0.0, "anchors", [share for _, share in sources], "of shares that sum to at most 1")
    return [(online, rest), *sources]


def follow(sources: Sources, replicas: list[Replica], treatment: Treatment) -> tuple[Sources, list[Replica]]:
    """Models as they are now.

    Where the online model has untied tensors, so are the averages: their past is the same. Buffers that are copied, or
    kept by the averaged model, may come, go and change their shape, as caches do in a forward.

    Raises:
        ValueError: if the tensors of a source do not fit the averages; lists them. Nothing has been changed then.
    """
    before, renewed = sources[0][0], [(source.renewed(), share) for source, share in sources]
    online, averages = renewed[0][0], [replica.renewed() for replica in replicas]
    kinds, first = treatment.kinds(online.places), averages[0]
    tied = {place.name: name for name, places in before.places.items() for place in places[1:]}
    aliases = {n: tied[n] for n in online.places if n not in first.places and tied.get(n) in first.places}
    # what is to have a copy made now
    late = _unfrozen(online, first, kinds, treatment) & before.places.keys() - aliases.keys()
    own = {**first.read(), **{alias: first.places[name][0].read() for alias, name in aliases.items()}}
    names = _fixed(online, first, kinds) - late
    check_fit(_only(online.read(), names), _only(own, names), "the online model")
    averaged = {n for n, kind in kinds.items() if kind == "average"} - late
    for i, (anchor, _) in enumerate(renewed[1:]):
        check_fit(_only(anchor.read(), averaged), _only(own, averaged), f"anchors[{i}]")
    for other in averages[1:]:
        check_fit(_only(other.read(), averaged), _only(first.read(), averaged), "each averaged model", "the first")
    late |= treatment.outdated(online.places)
    with torch.inference_mode(False), torch.no_grad():
        averages = [_taking_over(replica, online, aliases, late, kinds, treatment) for replica in averages]
    treatment.stamp(online.places)
    return renewed, averages


def _only(tensors: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name in names}


def _unfrozen(online: Replica, average: Replica, kinds: dict[str, Kind], treatment: Treatment) -> set[str]:
    """Parameters that were shared and are to have averages from now on."""
    if treatment.frozen == "copy":
        return set()
    new = {name for name, kind in kinds.items() if kind == "average" and name not in average.places}
    return {name for name in new if online.places[name][0].is_parameter}


def _fixed(online: Replica, average: Replica, kinds: dict[str, Kind]) -> set[str]:
    """Names that both must have alike: of parameters with a copy and averaged buffers, and kinds of lasting ones."""
    fixed = set()
    for name, kind in kinds.items():
        place = online.places[name][0]
        theirs = average.places.get(name)
        alike = theirs is None or kind_of(theirs[0].read()) == kind_of(place.read())
        is_copy = kind == "copy" and place.is_parameter and is_plain(place.read())
        if kind == "average" or is_copy or (kind != "share" and not alike and place.is_persistent):
            fixed.add(name)
    gone = (name for name in average.places if name not in kinds)
    return fixed | {name for name in gone if average.places[name][0].is_parameter}


def _taking_over(
    average: Replica,
    online: Replica,
    aliases: dict[str, str],
    late: set[str],
    kinds: dict[str, Kind],
    treatment: Treatment,
) -> Replica:
    """An average with what is new in the online model, and without what is gone."""
    new: dict[str, tuple[list[Place], Tensor]] = {}
    for alias, first in aliases.items():
        past = average.places[first][0]
        value = past.read().detach().clone()
        new[alias] = online.places[alias], nn.Parameter(value, False) if past.is_parameter else value
    for name, kind in kinds.items():
        place = online.places[name][0]
        is_cache = kind == "copy" and not place.is_parameter and is_plain(place.read())
        if name in late or (is_cache and not _has_room(average.places.get(name), place.read())):
            new[name] = online.places[name], copied(place.read(), place.is_parameter, treatment)
    stale = {
        name: (where, online.places[name][0].read())
        for name, where in average.shared.items()
        if name in online.places and name not in new and where[0].read() is not online.places[name][0].read()
    }
    for where, tensor in stale.values():
        for place in where:
            place.write(tensor)
    if stale:
        average = Replica(average.module, without=frozenset(average.shared))
    average = average.adopting(new) if new else average
    return average.dropping(average.places.keys() - kinds.keys())


def _has_room(where: list[Place] | None, tensor: Tensor) -> bool:
    if where is None:
        return False
    own = where[0].read()
    return own.shape == tensor.shape and kind_of(own) == kind_of(tensor)

"""What the registry wants of this engine: the adapters its routes name, and what the gateways still send here.

Reads only, in a worker thread. The last wanted set is kept on disk, so that an agent that starts while the registry is
away serves what it served before. Routes only grow: a model whose route is not shown keeps what was wanted of it last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tuneloop.registry import Registry
from tuneloop.registry.errors import InvalidInput, TuneloopError, Unavailable
from tuneloop.registry.files import OWNER_ONLY, write_atomically
from tuneloop.registry.nouns import EngineState, GatewayState, Route, Version, parse_version_name, version_name
from tuneloop.registry.versions.adapters import Base, wrong_base
from tuneloop.registry.versions.deadline import LOOKUP_TIMEOUT_S, mlflow_within
from tuneloop.serve.engine.reconcile import Gateways

MEMORY = "wanted.json"
PINNED = "pinned.json"  # of those that no route named
CUT_OFF_S = 600.0  # a gateway that did not end in order may serve on without the registry: what it serves stays so long
_MEMORY = TypeAdapter(tuple[Version, ...])


@dataclass(frozen=True)
class Sight:
    """One look at the registry."""

    wanted: tuple[Version, ...]  # adapters of this engine's base, the largest share first
    strange: dict[str, str] = field(
        default_factory=dict
    )  # version name → why a routed version is not for this engine; other oddities
    gateways: Gateways | None = None  # None: not known


class FleetMember:
    """An engine's place on the fleet's list, whatever it serves; the registry is opened when it can be."""

    def __init__(self, open_registry: Callable[[], Registry], *, engine_id: str) -> None:
        self._open = open_registry
        self._opened: Registry | None = None
        self._engine_id = engine_id

    @property
    def registry(self) -> Registry:
        """The open registry; opening it upgrades the schema.

        Raises:
            Unavailable: the database does not answer.
        """
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def beat(self, state: EngineState) -> None:
        """Store the engine's heartbeat."""
        self.registry.fleet.beat_engine(state)

    def leave(self) -> None:
        """Take the engine off the fleet's list and close the registry."""
        if self._opened is not None:
            try:
                self._opened.fleet.forget_engine(self._engine_id)
            finally:
                self._opened.close()


class RegistryWatch(FleetMember):
    """Looks at what the routes want of a base's engine; a version, once read, is never read again."""

    def __init__(
        self,
        open_registry: Callable[[], Registry],
        *,
        engine_id: str,
        base: Base,
        home: Path,
        pins: Sequence[str] = (),
    ) -> None:
        """`pins` are versions, MODEL@N, that are wanted whether or not a route names them."""
        super().__init__(open_registry, engine_id=engine_id)
        self._base = base
        self._pins = pins
        self._memory = home / MEMORY
        self._memory_of_pins = home / PINNED
        self._known: dict[str, Version] = {}
        self._last: tuple[Version, ...] = ()  # what was wanted last, in this life or the one before

    def remembered(self) -> Sight | None:
        """What was wanted when this engine's agent last looked, as far as it fits the base; None the first time.

        Raises:
            InvalidInput: the memory of the routes cannot be read; that of the pins is told in `strange` then.
        """
        kept = self._read(self._memory)
        if kept is None:
            return None
        strange: dict[str, str] = {}
        pinned: list[Version] = []
        try:
            pinned += [version for version in self._read(self._memory_of_pins) or () if version.name in self._pins]
        except InvalidInput as error:  # the routes' versions are served all the same
            strange[PINNED] = str(error)
        self._known |= {version.name: version for version in (*kept, *pinned)}
        self._last = tuple(version for version in kept if not wrong_base(version, self._base))
        fitting = (version for version in pinned if not wrong_base(version, self._base))
        return Sight((*self._last, *fitting), strange)

    def look(self) -> Sight:
        """The wanted adapters and the gateways' state now.

        Raises:
            Unavailable: the database does not answer.
        """
        routes = self.registry.routes.current_all()
        strange: dict[str, str] = {}
        weights = {
            version_name(route.model, arm.version): arm.weight_bp for route in routes.values() for arm in route.arms
        }
        found: list[tuple[int, Version]] = []
        pinned: list[Version] = []
        away = ""  # why MLflow does not answer: then no other version is asked for in this look
        for name in (*weights, *(pin for pin in self._pins if pin not in weights)):
            if away and name not in self._known:
                strange[name] = away
                continue
            try:
                version = self._version(*parse_version_name(name))
            except TuneloopError as error:
                strange[name] = str(error)
                away = str(error) if isinstance(error, Unavailable) else ""
                continue
            if why := wrong_base(version, self._base):
                strange[name] = "; ".join(why)
            elif name in weights:
                found.append((weights[name], version))
            else:
                pinned.append(version)
        wanted = tuple(version for _, version in sorted(found, key=lambda pair: (-pair[0], pair[1].name)))
        here = {version.name for version in pinned}
        unseen = tuple(one for one in self._last if one.model not in routes and one.name not in here)
        strange |= {version.name: f"the registry shows no route of {version.model} any more" for version in unseen}
        self._last = (*wanted, *unseen)
        strange |= self._remember(self._memory, self._last) | self._remember(self._memory_of_pins, tuple(pinned))
        return Sight((*self._last, *pinned), strange, self._gateways(routes, strange))

    def fetch(self, version: Version, root: Path) -> Path:
        """The version's folder below `root`, verified; needs no MLflow when it is there already.

        Raises:
            InvalidInput: the files are not those that were published and signed; the next look asks for the version
                anew, since somebody may have signed it meanwhile.
        """
        try:
            return self.registry.versions.fetch(version, root)
        except InvalidInput:
            self._known.pop(version.name, None)
            raise

    def _version(self, model: str, number: int) -> Version:
        name = version_name(model, number)
        known = self._known.get(name)  # once: a fetch that is refused forgets it from another thread
        if known is None:
            registry = self.registry
            known = mlflow_within(registry, lambda: registry.versions.get(model, number), LOOKUP_TIMEOUT_S)
            self._known[name] = known
        return known

    def _gateways(self, routes: dict[str, Route], strange: dict[str, str]) -> Gateways | None:
        """The gateways' state; None, and the reason in `strange`, when it cannot be read."""
        running: Counter[str] = Counter()
        late: set[str] = set()
        try:
            gateways = self.registry.fleet.gateways()
            silent = self.registry.fleet.silent_gateways(CUT_OFF_S)
        except (TuneloopError, ValueError) as error:  # the routes could be read: adapters are loaded all the same
            strange["gateways"] = f"cannot be read, so nothing is unloaded: {str(error).partition(chr(10))[0]}"
            return None
        if gateways.unreadable:  # a gateway that cannot be read may still send here
            strange["gateways"] = f"not all can be read, so nothing is unloaded: {'; '.join(gateways.unreadable)}"
            return None
        for gateway in gateways:
            for key, count in gateway.in_flight.items():
                engine, _, name = key.partition("|")
                if engine == self._engine_id:
                    running[name] += count
            late |= _behind(gateway, routes)
        cut_off = set(routes) if silent.unreadable else set()
        cut_off.update(*(_behind(gateway, routes) for gateway in silent))
        return Gateways(dict(running), frozenset(late), frozenset(cut_off))

    def _read(self, memory: Path) -> tuple[Version, ...] | None:
        """What one of the memories holds; None where there is none.

        Raises:
            InvalidInput: it cannot be read.
        """
        try:
            return _MEMORY.validate_json(memory.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} errors"
            raise InvalidInput(
                f"{memory} cannot be read ({why}): what it holds is not served before the registry answers, then it is "
                "written anew"
            ) from None

    def _remember(self, memory: Path, wanted: tuple[Version, ...]) -> dict[str, str]:
        """Keep what is wanted for the next life; why that failed, under the file's name."""
        text = _MEMORY.dump_json(wanted)
        try:
            if not memory.exists() or memory.read_bytes() != text:
                write_atomically(memory, text, mode=OWNER_ONLY)
        except OSError as error:
            why = f"cannot be written, and a start without the registry would serve what it says: {error}"
            return {memory.name: why}
        return {}


def _behind(gateway: GatewayState, routes: dict[str, Route]) -> set[str]:
    """The models whose newest revision it did not say that it applies."""
    return {model for model, route in routes.items() if gateway.applied.get(model, 0) < route.revision}

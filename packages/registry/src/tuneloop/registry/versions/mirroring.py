"""MLflow's aliases, which follow the routes: `champion` and `challenger`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from mlflow.exceptions import MlflowException

from tuneloop.registry.aliases.accounting import NAMES, Aliases
from tuneloop.registry.errors import NotFound
from tuneloop.registry.nouns import Route
from tuneloop.registry.versions.connected import Connected, asking

_MANY = 1_000  # versions with which a model is not worth reading for two aliases


class Mirroring(Connected):
    """Moves aliases, and says where they are."""

    @asking
    def mirror(self, route: Route) -> None:
        """Let MLflow's aliases follow the route: `champion` for the stable arm, `challenger` for one with a share."""
        wanted = Aliases.of(route)
        self._point(route.model, "champion", wanted.champion)
        self._point(route.model, "challenger", wanted.challenger)

    @asking
    def aliases(self, model: str) -> dict[str, int]:
        """Those of the two that mirror a route which are set, and their versions; the cost is that of two short calls.

        Raises:
            NotFound: MLflow has no such model.
        """
        asked = {alias: self._pointed(model, alias) for alias in NAMES}
        return {alias: version for alias, version in asked.items() if version is not None}

    @asking
    def aliases_of(self, routes: Sequence[Route]) -> dict[str, Aliases]:
        """What the two name for many models; one that MLflow does not have is left out.

        One short query where MLflow is a database. A server is asked for the models together, which costs it what their
        versions hold, and singly for one whose champion's number says that it has many.
        """
        if self._tables is not None:
            found = self._tables.aliases([route.model for route in routes], NAMES)
            return {model: Aliases.found(there) for model, there in found.items()}
        together, seen = [route.model for route in routes if route.champion < _MANY], dict[str, Aliases]()
        if together:
            names = ", ".join(f"'{model}'" for model in together)
            for model in self._client.search_registered_models(f"name IN ({names})", max_results=len(together)):
                seen[model.name] = Aliases.found({alias: int(version) for alias, version in model.aliases.items()})
        for route in routes:
            if route.champion >= _MANY:
                with suppress(NotFound):  # there is nothing to mirror to
                    seen[route.model] = Aliases.found(self.aliases(route.model))
        return seen

    def _point(self, model: str, alias: str, version: int | None) -> None:
        """Move an alias where it is not there already."""
        try:
            there = self._pointed(model, alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            there = None
        if version is None and there is not None:
            self._changes.delete_registered_model_alias(model, alias)
        elif version != there:
            self._changes.set_registered_model_alias(model, alias, str(version))

    def _pointed(self, model: str, alias: str) -> int | None:
        """What an alias names. Asking for the model instead would read all its versions."""
        try:
            return int(self._client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return None  # it points nowhere

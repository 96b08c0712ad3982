"""MLflow's aliases, which follow the routes: `champion` and `challenger`."""

from __future__ import annotations

from mlflow.exceptions import MlflowException

from tuneloop.registry.aliases.accounting import NAMES, Aliases
from tuneloop.registry.nouns import Route
from tuneloop.registry.versions.connected import Connected, asking


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

    def _point(self, model: str, alias: str, version: int | None) -> None:
        """Move an alias where it is not there already: MLflow reads all versions of the model to move or remove one."""
        try:
            there = self._pointed(model, alias)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            there = None
        if version is None and there is not None:
            self._client.delete_registered_model_alias(model, alias)
        elif version != there:
            self._client.set_registered_model_alias(model, alias, str(version))

    def _pointed(self, model: str, alias: str) -> int | None:
        """What an alias names. Asking for the model instead would read all its versions."""
        try:
            return int(self._client.get_model_version_by_alias(model, alias).version)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return None  # it points nowhere

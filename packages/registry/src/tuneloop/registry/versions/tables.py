"""What MLflow's client reads every version of a model for, read from MLflow's tables where it keeps them in a database.

Its list of models looks for the newest version of each, aliases it tells one by one, and a model's newest number only
with all the others. Here each is one short query, in a session of MLflow's own store and on its own classes; nothing is
written. Behind a tracking server there are no tables, and its calls are asked instead.
"""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa
from mlflow.entities.model_registry.model_version_stages import STAGE_DELETED_INTERNAL
from mlflow.store.model_registry.dbmodels.models import (
    SqlModelVersion,
    SqlModelVersionTag,
    SqlRegisteredModel,
    SqlRegisteredModelAlias,
    SqlRegisteredModelTag,
)
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore


class Tables:
    """Reads of one MLflow that cost the same however many versions there are."""

    def __init__(self, store: SqlAlchemyStore) -> None:
        self._store = store

    def tagged(self, key: str) -> list[str]:
        """The models that carry a tag, by name."""
        tag = SqlRegisteredModelTag
        with self._store.ManagedSessionMaker() as session:
            found = self._store._get_query(session, tag).filter(tag.key == key, tag.value == "1")
            return sorted(row.name for row in found)

    def newest(self, model: str) -> int:
        """The highest number that a version of a model ever had, of deleted ones too; 0 where it never had any."""
        made = SqlModelVersion
        with self._store.ManagedSessionMaker() as session:
            rows = self._store._get_query(session, made).filter(made.name == model)
            return int(rows.with_entities(sa.func.max(made.version)).scalar() or 0)

    def newest_tagged(self, models: Collection[str], key: str) -> dict[str, int]:
        """The highest number of a version that is there and carries a tag, of each of these models that has one."""
        model, made, tag = SqlRegisteredModel, SqlModelVersion, SqlModelVersionTag
        of_it = sa.and_(tag.workspace == model.workspace, tag.name == model.name, tag.key == key)
        same = sa.and_(made.workspace == tag.workspace, made.name == tag.name, made.version == tag.version)
        newest = (
            sa.select(tag.version)
            .join(made, same)
            .where(of_it, made.current_stage != STAGE_DELETED_INTERNAL)
            .order_by(tag.version.desc())
            .limit(1)
            .correlate(model)
            .scalar_subquery()
        )
        with self._store.ManagedSessionMaker() as session:
            rows = (
                self._store._get_query(session, model).filter(model.name.in_(models)).with_entities(model.name, newest)
            )
            return {name: int(version) for name, version in rows if version is not None}

    def aliases(self, models: Collection[str], names: Collection[str]) -> dict[str, dict[str, int]]:
        """What these aliases of these models name. A model that MLflow does not have is left out."""
        model, alias = SqlRegisteredModel, SqlRegisteredModelAlias
        theirs = sa.and_(alias.workspace == model.workspace, alias.name == model.name, alias.alias.in_(names))
        with self._store.ManagedSessionMaker() as session:
            rows = self._store._get_query(session, model).filter(model.name.in_(models)).outerjoin(alias, theirs)
            found: dict[str, dict[str, int]] = {}
            for name, said, version in rows.with_entities(model.name, alias.alias, alias.version):
                there = found.setdefault(name, {})
                if said is not None:
                    there[said] = int(version)
            return found

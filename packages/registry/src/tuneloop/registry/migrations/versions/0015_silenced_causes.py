"""A silence of an episode knows what it was asked for, so that what joins the episode of another cause is told; what is
on record of a user is found by an index; and arms of a route may name their places, which older schemas do not know."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    """Of what is silenced already that is not known: it stays quiet, whatever joins."""
    op.add_column("silences", sa.Column("cause", sa.Text, nullable=True))
    op.add_column("silences", sa.Column("signals", _JSON, nullable=True))
    for traffic in ("requests", "shadow_requests"):
        op.create_index(f"{traffic}_by_user", traffic, ["key_hash"])


def downgrade() -> None:
    """Silences of episodes keep everything quiet again; arms own the places that their order gives them."""
    routes = sa.table("routes", sa.column("model"), sa.column("revision"), sa.column("arms", _JSON))
    connection = op.get_bind()
    for row in connection.execute(sa.select(routes)).mappings().all():
        if any("places" in arm for arm in row["arms"]):
            arms = [{name: value for name, value in arm.items() if name != "places"} for arm in row["arms"]]
            here = (routes.c.model == row["model"]) & (routes.c.revision == row["revision"])
            connection.execute(sa.update(routes).where(here).values(arms=arms))
    for traffic in ("requests", "shadow_requests"):
        op.drop_index(f"{traffic}_by_user", traffic)
    with op.batch_alter_table("silences") as table:
        table.drop_column("signals")
        table.drop_column("cause")

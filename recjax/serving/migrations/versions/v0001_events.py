"""Events of users, and the items that answers showed."""
import sqlalchemy as sa
from alembic import op

revision, down_revision = '0001', None
BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')  # SQLite counts integers alone


def upgrade() -> None:
  """Makes the tables."""
  op.create_table(
      'events',
      sa.Column('seq', BIG_KEY, primary_key=True, autoincrement=True),
      sa.Column('key', sa.Text(), nullable=False, unique=True),
      sa.Column('user_id', sa.Text(), nullable=False),
      sa.Column('item_id', sa.Text(), nullable=False),
      sa.Column('type', sa.Text(), nullable=False),
      sa.Column('time_ms', sa.BigInteger(), nullable=False),
      sa.Column('request_id', sa.Text(), nullable=False))
  op.create_index('events_by_user', 'events', ['user_id', 'time_ms'])
  op.create_index('events_by_request', 'events', ['request_id', 'item_id'])
  op.create_table(
      'impressions',
      sa.Column('request_id', sa.Text(), primary_key=True),
      sa.Column('rank', sa.Integer(), primary_key=True),
      sa.Column('item_id', sa.Text(), nullable=False),
      sa.Column('model', sa.Text(), nullable=False),
      sa.Column('user_id', sa.Text(), nullable=False),
      sa.Column('time_ms', sa.BigInteger(), nullable=False))
  op.create_index('impressions_by_user', 'impressions', ['user_id'])


def downgrade() -> None:
  """Removes the tables with all that is in them."""
  op.drop_table('impressions')
  op.drop_table('events')

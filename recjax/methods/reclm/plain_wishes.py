"""Requests in a person's own words, by kind of goods, number and price, and lists that fulfil them.

Histories alone teach a chat model to answer one form of request; these teach it to answer any with
a list. Number and price are kept to by decoding (`item_limits`); here lists only have to agree.
"""
import numpy as np
from jaxtyping import Float

from recjax.methods.reclm import item_limits
from recjax.methods.reclm.tokenized_catalog import TokenizedCatalog

FORMS = (
  'I am looking for {what}. {Count} items{limit}, please.', 'For {what}: {count} items{limit}.',
  '{Count} items for {what}{limit}', 'Can you recommend {count} products in {what}{limit}?',
  'What do you have in {what}? Name {count} products{limit}.', 'Show me {count} {what}{limit}.',
  'I want to buy {what}, {count} items{limit}.', 'We need {what}. Suggest {count} items{limit}.',
  'Which {what} would you take? List {count} products{limit}.',
  'My friend likes {what}. {Count} gifts{limit}, please.',
)
LIMITS = (', not over {}', ' under {}', ', at most {} euros', ' below ${}',
          ' for {} dollars or less')


def make_wish(tokenized: TokenizedCatalog, prices: Float[np.ndarray, ' N'],
              rng: np.random.Generator, max_items: int) -> tuple[str, list[int]] | None:
  """A request for goods of one category, half of those of shops with prices with a limit.

  prices: of the items, NaN where unknown. max_items: of a list. tokenized: the catalog. rng: of the
  draws. -> text, item indices; None where the drawn item has no category
  """
  item = int(rng.integers(1, len(tokenized.titles) + 1))
  paths = tokenized.categories_of(item)
  if not paths:
    return None
  path, limit = paths[rng.integers(len(paths))], ''
  members = np.array([i for i, others in enumerate(tokenized.categories, 1) if path in others])
  if rng.random() < 0.5 and not np.isnan(prices[item - 1]):
    price = int(np.ceil(prices[item - 1])) + int(rng.integers(1, 11))
    limit = LIMITS[rng.integers(len(LIMITS))].format(price)
    members = members[prices[members - 1] < price]  # that of `item` is among them
  count = int(rng.integers(1, min(max_items, len(members)) + 1))
  spelled = item_limits.SMALL[count] if rng.random() < 0.7 and count < 20 else str(count)
  text = FORMS[rng.integers(len(FORMS))].format(
    what=path.split(', ')[-1].lower(), count=spelled, Count=spelled.capitalize(), limit=limit)
  if count == 1:
    text = text.replace('items', 'item').replace('products', 'product').replace('gifts', 'gift')
  return text, [int(members[place]) for place in rng.permutation(len(members))[:count]]

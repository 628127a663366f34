"""Later data sets for tests: what `recjax prepare --update` makes of a run's, without raw files."""
import dataclasses

from recjax.data import dataset, loading


def write(source, folder, new, retired=(), changed=None, swap=False):
  """A data set with the items of `source` under their numbers and new ones behind, at `folder`.

  new: [{'item_id': ..., column: value}]. retired: item ids. changed: {item id: {column: value}}.
  swap: the first two items change places, which no update does. -> folder
  """
  shop = loading.load_data(source)
  goods = shop.catalog
  rows = [{'item_id': i} | {k: v[n] for k, v in goods.columns.items()}
          for n, i in enumerate(goods.ids)]
  rows = [r | (changed or {}).get(r['item_id'], {}) for r in rows] + list(new)
  if swap:
    rows[:2] = rows[1::-1]
  names = dict.fromkeys(k for r in rows for k in r if k != 'item_id')
  columns = {k: [r.get(k) for r in rows] for k in names}
  columns['retired'] = [True if r['item_id'] in retired else None for r in rows]
  goods = dataset.Catalog(tuple(r['item_id'] for r in rows), columns)
  loading.save_data(dataclasses.replace(shop, catalog=goods), folder)
  return folder

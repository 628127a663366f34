"""Exports of shops, spreadsheets and databases: one truth in many forms, found out without flags."""
import contextlib
import csv
import datetime
import functools
import gzip
import importlib.util
import io
import json
import os
import pathlib
import shutil
import socket
import sqlite3
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from recjax import cli
from recjax.data import loading

HOUR = datetime.timedelta(hours=1)
START = datetime.datetime(2024, 1, 20, 9, 30)
# 5 customers, 6 products, 30 purchases over 20 days; newest first, so that order must be found.
ROWS = [(1001 + n % 5, f'A-{n * 7 % 6:03d}', START + n * 17 * HOUR, 1 + n % 3, 9.5 + n % 6)
        for n in reversed(range(30))]
PRODUCTS = [(f'A-{n:03d}', 9.5 + n) for n in range(6)]
CET = datetime.timezone(HOUR)


def text(sep, head, line, encoding='utf-8', above='', end='\n'):
  """Bytes of a table: names of columns, and a line of each purchase."""
  lines = [*above.split('\n')[:-1], head, *(line(*row) for row in ROWS)]
  return (end.join(lines) + end).replace('\x1f', sep).encode(encoding)


def csv_text(head, line):
  """Bytes of a table as the csv module quotes it."""
  out = io.StringIO()
  csv.writer(out).writerows([head, *(line(*row) for row in ROWS)])
  return out.getvalue().encode()


def comma(value):
  return f'{value:.2f}'.replace('.', ',')


def titled(words):
  return lambda item: f'{words[int(item[2:])]}'


GERMAN = titled(['K\xfcchenmesser', 'M\xfchle', 'Br\xf6tchenkorb', 'Glas', 'T\xf6pfe', 'Tasse'])
FRENCH = titled(['Cafeti\xe8re', 'Th\xe9i\xe8re', 'Assiette', 'Cr\xeape', 'Po\xeale', 'Bol'])
POLISH = titled(['\u0141y\u017cka', 'Fili\u017canka', 'N\xf3\u017c', 'Talerz', 'Garnek',
                 '\u015awiecznik'])
RUSSIAN = titled(['\u0427\u0430\u0448\u043a\u0430', '\u041d\u043e\u0436', '\u041b\u043e\u0436\u043a'
                  '\u0430', '\u0422\u0430\u0440\u0435\u043b\u043a\u0430',
                  '\u041a\u0430\u0441\u0442\u0440\u044e\u043b\u044f', '\u0412\u0438\u043b\u043a'
                  '\u0430'])

TEXTS = {
    'woocommerce.csv': lambda: csv_text(
        ['Order ID', 'Order Date', 'Order Status', 'Customer ID', 'Product ID', 'Product Name',
         'Quantity', 'Item Total'],
        lambda u, i, t, q, p: [9, f'{t:%Y-%m-%d %H:%M}', 'wc-completed', u, i, f'Cup, "{i}"', q, p]),
    'online_retail.csv': lambda: csv_text(
        ['InvoiceNo', 'StockCode', 'Description', 'Quantity', 'InvoiceDate', 'UnitPrice',
         'CustomerID', 'Country'],
        lambda u, i, t, q, p: [536365, i, 'WHITE MUG', q, f'{t.month}/{t.day}/{t:%Y} {t.hour}:{t:%M}',
                               p, f'{u}.0', 'United Kingdom']),
    'excel_de.csv': lambda: text(
        ';', 'Kunde\x1fArtikel\x1fBezeichnung\x1fBestelldatum\x1fMenge\x1fPreis',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{GERMAN(i)}\x1f{t:%d.%m.%Y %H:%M}\x1f{q}\x1f{comma(p)}',
        'cp1252', 'Ums\xe4tze 2024\nErstellt am 01.03.2024\n\n', '\r\n'),
    'datum_uhrzeit.csv': lambda: text(
        ';', 'Kundennummer\x1fArtikelnummer\x1fDatum\x1fUhrzeit\x1fAnzahl',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%d.%m.%Y}\x1f{t:%H:%M}\x1f{q}'),
    'sep_line.csv': lambda: text(
        ';', 'Kunden-Nr.\x1fMaterialnr.\x1fBelegdatum\x1fNetto',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%d.%m.%Y %H:%M:%S}\x1f{comma(1000 * p)}',
        'utf-8-sig', 'sep=;\n', '\r\n'),
    'ventes.csv': lambda: text(
        ';', 'N\xb0 client\x1fR\xe9f\xe9rence\x1fD\xe9signation\x1fDate de commande\x1fQuantit\xe9',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{FRENCH(i)}\x1f{t:%d/%m/%Y %H:%M}\x1f{q}', 'cp1252'),
    'pedidos.csv': lambda: text(
        ',', 'ID cliente\x1fC\xf3digo art\xedculo\x1fFecha\x1fCantidad\x1fPrecio',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%d/%m/%Y %H:%M}\x1f{q}\x1f"{comma(p)}"'),
    'ordini.csv': lambda: text(
        ';', 'Codice cliente\x1fCodice prodotto\x1fData ordine\x1fQuantit\xe0',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%d/%m/%Y %H:%M}\x1f{q}'),
    'zamowienia.csv': lambda: text(
        ';', 'Klient\x1fProdukt\x1fNazwa\x1fData zakupu\x1fIlo\u015b\u0107',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{POLISH(i)}\x1f{t:%Y-%m-%d %H:%M}\x1f{q}', 'cp1250'),
    'zakazy.csv': lambda: text(
        ';', '\u041a\u043b\u0438\u0435\u043d\u0442\x1f\u0410\u0440\u0442\u0438\u043a\u0443\u043b\x1f'
        '\u041d\u0430\u0437\u0432\u0430\u043d\u0438\u0435\x1f\u0414\u0430\u0442\u0430',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{RUSSIAN(i)}\x1f{t:%d.%m.%Y %H:%M}', 'cp1251'),
    'chumon.csv': lambda: text(
        ',', '\u9867\u5ba2\u756a\u53f7\x1f\u5546\u54c1\u30b3\u30fc\u30c9\x1f\u6ce8\u6587\u65e5\u6642'
        '\x1f\u6570\u91cf', lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%Y/%m/%d %H:%M}\x1f{q}', 'cp932'),
    'dingdan.tsv': lambda: text(
        '\t', '\u7528\u6237ID\x1f\u5546\u54c1\u7f16\u53f7\x1f\u4e0b\u5355\u65f6\u95f4\x1f\u6570\u91cf',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%Y-%m-%d %H:%M:%S}\x1f{q}', 'gb18030'),
    'siparis.csv': lambda: text(
        ';', 'M\xfc\u015fteri No\x1f\xdcr\xfcn Kodu\x1fTarih\x1fAdet',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%d.%m.%Y %H:%M}\x1f{q}'),
    'events.csv': lambda: text(
        ',', 'timestamp\x1fvisitorid\x1fevent\x1fitemid\x1ftransactionid',
        lambda u, i, t, q, p: f'{stamp(t) * 1000}\x1f{u}\x1fview\x1f{i}\x1f'),
    'clicks.csv.gz': lambda: gzip.compress(text(
        ',', 'event_time\x1fevent_type\x1fproduct_id\x1fcategory_code\x1fprice\x1fuser_id\x1f'
        'user_session', lambda u, i, t, q, p: f'{t:%Y-%m-%d %H:%M:%S} UTC\x1fpurchase\x1f{i}\x1f\x1f'
        f'{p}\x1f{u}\x1f72d76fde')),
    'magento.txt': lambda: text(
        '|', 'increment_id\x1fcustomer_id\x1fsku\x1fcreated_at\x1fqty_ordered',
        lambda u, i, t, q, p: f'1\x1f{u}\x1f{i}\x1f{t:%b %d, %Y %I:%M:%S %p}\x1f{q}.0000'),
    'unicode.txt': lambda: text(
        '\t', 'Customer No.\x1fItem No.\x1fPosting Date\x1fQuantity',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%m/%d/%Y %I:%M %p}\x1f{q}', 'utf-16', end='\r\n'),
    'pandas.csv': lambda: text(
        ',', '\x1fuser\x1fproduct\x1fordered_at', lambda u, i, t, q, p:
        f'{ROWS.index((u, i, t, q, p))}\x1f{u}.0\x1f{i}\x1f{t.replace(tzinfo=datetime.UTC)}'),
    'hive.out': lambda: text(
        '\x01', 'user_id\x1fitem_id\x1fts', lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{stamp(t)}'),
    'api.json': lambda: json.dumps([{
        'customerId': u, 'productId': i, 'createdAt': f'{t:%Y-%m-%dT%H:%M:%S}Z', 'tags': ['x']}
        for u, i, t, q, p in ROWS], indent=1).encode(),
    'one_line.json.gz': lambda: gzip.compress(json.dumps([{
        'buyer': u, 'sku': i, 'purchased_at': stamp(t)} for u, i, t, q, p in ROWS]).encode()),
    'analytics.jsonl.zst': lambda: zst(''.join(json.dumps({
        'user_pseudo_id': str(u), 'item_id': i, 'event_name': 'purchase',
        'event_timestamp': stamp(t) * 10 ** 6}) + '\n' for u, i, t, q, p in ROWS).encode()),
    'berlin.csv': lambda: text(
        ',', 'customer\x1farticle\x1fcreated_at', lambda u, i, t, q, p:
        f'{u}\x1f{i}\x1f{t.replace(tzinfo=datetime.UTC).astimezone(CET).isoformat()}'),
    'shopify.csv': lambda: csv_text(
        ['Name', 'Email', 'Financial Status', 'Paid at', 'Created at', 'Lineitem quantity',
         'Lineitem name', 'Lineitem sku'], lambda u, i, t, q, p: [
             '#1', u, 'paid', f'{t + HOUR:%Y-%m-%d %H:%M:%S} +0000', f'{t:%Y-%m-%d %H:%M:%S} +0000',
             q, 'Cup', i]),
    'ratings.data': lambda: text(
        '\t', f'{ROWS[0][0]}\x1f{ROWS[0][1]}\x1f3\x1f{stamp(ROWS[0][2])}', lambda u, i, t, q, p:
        f'{u}\x1f{i}\x1f{q}\x1f{stamp(t)}').split(b'\n', 1)[1],
}
# What asks, and which flag answers.
ASKED = {'shopify.csv': ('which column holds the times? Created at, Paid at could do',
                         '--columns=time=Created at'),
         'ratings.data': ('its first line (1005, A-005, 3', '--yes')}


def stamp(when):
  return int(when.replace(tzinfo=datetime.UTC).timestamp())


def zst(data):
  import pyarrow as pa
  return pa.compress(data, 'zstd', asbytes=True)


def has(*packages):
  return all(importlib.util.find_spec(package) for package in packages)


def postgres():
  """Where the programs of PostgreSQL are, or None."""
  found = [path for name in ('initdb', 'pg_ctl') if (path := shutil.which(name) or next(
      map(str, pathlib.Path('/usr/lib/postgresql').glob(f'*/bin/{name}')), None))]
  return found if len(found) == 2 else None


class Exports(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.out = self.folder / 'out'

  def prepare(self, path, *flags, typed=None):
    """-> exit code, what was said. typed: what somebody at a terminal answers."""
    said = io.StringIO()
    keyboard = io.StringIO(typed or '')
    keyboard.isatty = said.isatty = lambda: typed is not None
    shutil.rmtree(self.out, ignore_errors=True)
    words = ['recjax', 'prepare', 'table', str(path), f'--out={self.out}', *flags]
    with (mock.patch.object(sys, 'argv', words), mock.patch.object(sys, 'stdin', keyboard),
          contextlib.redirect_stdout(said), contextlib.redirect_stderr(said)):
      try:
        cli.main()
        return 0, said.getvalue()
      except SystemExit as stop:
        return stop.code, said.getvalue()

  def check(self, data):
    want = {}
    for user, item, when, *_ in sorted(ROWS, key=lambda row: row[2]):
      want.setdefault(str(user), []).append((item, stamp(when)))
    found = data.interactions
    unit = {10: 1, 13: 1000, 16: 10 ** 6, 19: 10 ** 9}[len(str(int(found.times[0])))]
    got = {}
    for number, user in enumerate(found.users):
      start, end = found.offsets[number:number + 2]
      got[user] = [(data.catalog.id_of(int(i)), int(t) // unit) for i, t in zip(
          found.items[start:end], found.times[start:end])]
    self.assertEqual(got, want)


@absltest.skipUnless(has('duckdb', 'charset_normalizer'), 'needs: pip install "recjax[data]"')
class FoundTest(Exports):

  @parameterized.parameters(*TEXTS)
  def test_text(self, name):
    path = self.folder / name
    path.write_bytes(TEXTS[name]())
    code, said = self.prepare(path)
    if name in ASKED:
      question, flag = ASKED[name]
      self.assertEqual(code, 2, said)
      self.assertIn(question, said)
      self.assertFalse(self.out.exists())
      code, said = self.prepare(path, flag)
    self.assertEqual(code, 0, said)
    self.assertIn('the first rows as understood', said)
    self.check(loading.load_data(self.out))

  def test_nine_of_ten_need_no_flag(self):
    self.assertGreaterEqual(len(TEXTS), 20)
    self.assertLessEqual(len(ASKED), 0.1 * len(TEXTS))
    self.assertContainsSubset(ASKED, TEXTS)


if __name__ == '__main__':
  absltest.main()

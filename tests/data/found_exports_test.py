"""Exports of shops, spreadsheets, databases: one truth in many forms, found out without flags."""
import contextlib
import csv
import datetime
import gzip
import importlib.util
import io
import json
import pathlib
import shutil
import sqlite3
import sys
from unittest import mock

from absl.testing import absltest, parameterized

from recjax import cli
from recjax.data import loading
from tests.serving import databases

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
        lambda u, i, t, q, p: [9, f'{t:%Y-%m-%d %H:%M}', 'wc-completed', u, i, f'A "{i}", red', q,
                               p]),
    'online_retail.csv': lambda: csv_text(
        ['InvoiceNo', 'StockCode', 'Description', 'Quantity', 'InvoiceDate', 'UnitPrice',
         'CustomerID', 'Country'],
        lambda u, i, t, q, p: [536365, i, 'WHITE MUG', q, f'{t.month}/{t.day}/{t:%Y %H:%M}', p,
                               f'{u}.0', 'United Kingdom']),
    'excel_de.csv': lambda: text(
        ';', 'Kunde\x1fArtikel\x1fBezeichnung\x1fBestelldatum\x1fMenge\x1fPreis',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{GERMAN(i)}\x1f{t:%d.%m.%Y %H:%M}\x1f{q}\x1f'
        f'{comma(p)}',
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
        ';', '\u041a\u043b\u0438\u0435\u043d\u0442\x1f'
        '\u0410\u0440\u0442\u0438\u043a\u0443\u043b\x1f'
        '\u041d\u0430\u0437\u0432\u0430\u043d\u0438\u0435\x1f\u0414\u0430\u0442\u0430',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{RUSSIAN(i)}\x1f{t:%d.%m.%Y %H:%M}', 'cp1251'),
    'chumon.csv': lambda: text(
        ',', '\u9867\u5ba2\u756a\u53f7\x1f\u5546\u54c1\u30b3\u30fc\u30c9\x1f'
        '\u6ce8\u6587\u65e5\u6642\x1f\u6570\u91cf',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%Y/%m/%d %H:%M}\x1f{q}', 'cp932'),
    'dingdan.tsv': lambda: text(
        '\t', '\u7528\u6237ID\x1f\u5546\u54c1\u7f16\u53f7\x1f\u4e0b\u5355\u65f6\u95f4\x1f'
        '\u6570\u91cf',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%Y-%m-%d %H:%M:%S}\x1f{q}', 'gb18030'),
    'siparis.csv': lambda: text(
        ';', 'M\xfc\u015fteri No\x1f\xdcr\xfcn Kodu\x1fTarih\x1fAdet',
        lambda u, i, t, q, p: f'{u}\x1f{i}\x1f{t:%d.%m.%Y %H:%M}\x1f{q}'),
    'events.csv': lambda: text(
        ',', 'timestamp\x1fvisitorid\x1fevent\x1fitemid\x1ftransactionid',
        lambda u, i, t, q, p: f'{stamp(t) * 1000}\x1f{u}\x1fview\x1f{i}\x1f'),
    'clicks.csv.gz': lambda: gzip.compress(text(
        ',', 'event_time\x1fevent_type\x1fproduct_id\x1fcategory_code\x1fprice\x1fuser_id\x1f'
        'user_session', lambda u, i, t, q, p: f'{t:%Y-%m-%d %H:%M:%S} UTC\x1fpurchase\x1f{i}\x1f'
        f'\x1f{p}\x1f{u}\x1f72d76fde')),
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
      self.assertIn('taken as user,item,rating,time' if 'ratings' in name else 'as named', said)
    self.assertEqual(code, 0, said)
    self.assertIn('the first rows as understood', said)
    self.check(loading.load_data(self.out))

  def test_nine_of_ten_need_no_flag(self):
    self.assertGreaterEqual(len(TEXTS), 20)
    self.assertLessEqual(len(ASKED), 0.1 * len(TEXTS))
    self.assertContainsSubset(ASKED, TEXTS)

  def test_a_workbook_with_titles_above_and_goods_in_another_sheet(self):
    if not has('python_calamine', 'openpyxl'):
      self.skipTest('needs python-calamine and openpyxl: pip install "recjax[data,test]"')
    import openpyxl
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = 'Bestellungen'
    for row in (['Ums\xe4tze 2024'], [], ['Kunde', 'Artikel', 'Bestelldatum', 'Menge', 'Preis'],
                *([u, i, t, q, p] for u, i, t, q, p in ROWS)):
      sheet.append(row)
    goods = book.create_sheet('Produkte')
    for row in (['Artikel', 'Bezeichnung', 'Preis'], *([i, GERMAN(i), p] for i, p in PRODUCTS)):
      goods.append(row)
    path = self.folder / 'shop.xlsx'
    book.save(path)
    code, said = self.prepare(path)
    self.assertEqual(code, 0, said)
    self.assertIn("shop.xlsx: a workbook, sheet 'Bestellungen'", said)
    self.assertIn("shop.xlsx: a workbook, sheet 'Produkte'", said)
    data = loading.load_data(self.out)
    self.check(data)
    self.assertEqual(data.catalog.columns['title'], [GERMAN(i) for i, _ in PRODUCTS])
    self.assertEqual(data.catalog.columns['price'], [p for _, p in PRODUCTS])
    code, said = self.prepare(path, '--query=Orders')
    self.assertEqual(code, 2)
    self.assertIn("no sheet 'Orders'; it has Bestellungen, Produkte", said)
    sheet['A9'] = None
    book.save(path)
    code, said = self.prepare(path)
    self.assertEqual(code, 2)
    self.assertIn('shop.xlsx row 9: Kunde is empty', said)


@absltest.skipUnless(has('duckdb'), 'needs: pip install "recjax[data]"')
class AskedTest(Exports):

  def write(self, name, data):
    path = self.folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path

  def history(self):
    data = loading.load_data(self.out)
    return [data.catalog.id_of(i) for i in data.interactions.history(0)]

  def test_at_a_terminal_it_asks_before_anything_is_written(self):
    path = self.write('log.csv', 'user_id,item_id,created_at,updated_at\n'
                      'u,a,2024-01-02,2024-01-03\nu,b,2024-01-01,2024-01-04\n')
    code, said = self.prepare(path, typed='2\n\n')
    self.assertEqual(code, 0, said)
    self.assertIn('  1  created_at\n  2  updated_at\n', said)
    self.assertIn('updated_at  is time, as answered; dates like 2024-03-31', said)
    self.assertIn('    u     a     2024-01-03\n', said)
    self.assertEqual(self.history(), ['a', 'b'])
    for typed in ('2\nn\n', 'q\n', '', '1\n'):  # not right; stopped; nobody there
      code, said = self.prepare(path, typed=typed)
      self.assertEqual(code, 2, said)
      self.assertFalse(self.out.exists())
    code, said = self.prepare(path, '--yes', typed='')
    self.assertEqual(code, 0, said)
    self.assertIn('could do. Taken, as --yes says: created_at\n', said)
    self.assertNotIn('Enter', said)
    self.assertEqual(self.history(), ['b', 'a'])

  def test_without_a_terminal_nothing_is_asked_and_only_what_is_told_is_taken(self):
    path = self.write('log.csv', 'who,what,when,cost\nu,a,2024-01-02,3\nu,b,2024-01-01,4\n')
    code, said = self.prepare(path)
    self.assertEqual(code, 2, said)
    self.assertIn('which column is the user? It has who, what, when, cost', said)
    code, said = self.prepare(path, '--yes')  # nothing makes one likelier than another
    self.assertEqual(code, 2, said)
    code, said = self.prepare(path, typed='1\nwhat\n\n')
    self.assertEqual(code, 0, said)
    self.assertEqual(self.history(), ['b', 'a'])
    self.assertIn('not read: cost', said)
    code, said = self.prepare(self.write('x.csv', 'user,item,date\nu,a,02/03/2024\n'
                                         'u,b,03/02/2024\n'), typed='2\n\n')
    self.assertEqual(code, 0, said)
    self.assertEqual(self.history(), ['a', 'b'])

  def test_wrong_files_are_told_with_place_and_remedy(self):
    packed = zst(b'user,item,time\n' + b''.join(b'%d,i,%d\n' % (n, 1700000000 + n * n)
                                               for n in range(9000)))
    for name, data, why in (
        ('cut.csv.zst', packed[:-100], 'cut.csv.zst cannot be read: Truncated compressed stream'),
        ('bad.csv.zst', packed[:9] + b'x' * 9, 'bad.csv.zst cannot be read: ZSTD decompress'),
        ('bad.xlsx', b'PK\3\4 no', 'bad.xlsx is a zip archive'),
        ('old.xls', b'\xd0\xcf\x11\xe0 no', 'old.xls'),
        ('cut.json', '[{"user": "u", "item": "i", "time": 1700000000}', 'array that is cut off'),
        ('odd.json', '[{"user": "u", "item": "i", "time": 1700000000}, {]', 'odd.json'),
        ('list.json', '[{"user": "u", "item": "i", "time": 1700000000},\n 3]',
         'list.json entry 2: not a JSON object'),
        ('x.db', b'SQLite format 3\0' + b'no' * 600, 'x.db'),
        ('day.csv', 'user,item,time\n' + 'u,i,2024-01-02\n' * 9 + 'u,i,2024-02-31\n',
         "day.csv line 11: the time is neither a number nor a date like 2024-03-31")):
      code, said = self.prepare(self.write(name, data))
      self.assertEqual(code, 2, said)
      self.assertIn(why, said)
      self.assertNotIn('Traceback', said)
      self.assertFalse(self.out.exists())
    code, said = self.prepare('mysql+nosuchdriver://u:geheim@localhost/shop')
    self.assertEqual(code, 2, said)
    self.assertNotIn('geheim', said)

  def test_events_quantities_and_returns(self):
    rows = [('view', 'a', 1), ('add_to_cart', 'b', 2), ('purchase', 'c', '3,0'), ('refund', 'd', 1),
            ('purchase', 'e', -1), ('remove_from_cart', 'f', 1), ('Purchase', 'c', 2)]
    path = self.write('log.csv', 'user_id;item_id;time;event_type;qty\n' + ''.join(
        f'u;{item};{1_700_000_000 + n};{event};{quantity}\n'
        for n, (event, item, quantity) in enumerate(rows)))
    for flags, items, ratings, words in (
        ([], 'abcc', None, ['1 rows do not count: returns: refund.', 'all but returns count',
                            '1 rows do not count: returns: a quantity of 0 or less.']),
        (['--events=purchase'], 'cc', None, ['events of other kinds than --events: view']),
        (['--events=all'], 'abcdefc', None, ['purchase 2, ', 'all count']),
        (['--events=view=.5,cart=1,purchase=4'], 'abcc', [.5, 2, 12, 8], ['written as ratings']),
        (['--events=view=1,purchase=4', '--columns=quantity='], 'acec', [1, 4, 4, 4], []),
        (['--events=view=1,purchase=4', '--min-rating=4'], 'cc', [12, 8], [])):
      code, said = self.prepare(path, *flags)
      self.assertEqual(code, 0, said)
      for word in words:
        self.assertIn(word, said)
      self.assertEqual(''.join(self.history()), items, flags)
      found = loading.load_data(self.out).interactions.ratings
      self.assertEqual(found if ratings is None else found.tolist(), ratings)
    for flag, why in (('--events=rent', 'no row is rent; column \'event_type\' has view, '),
                      ('--events=view=x', 'no kind of event with a weight'),
                      ('--events=view=-1', 'no kind of event with a weight')):
      code, said = self.prepare(path, flag)
      self.assertEqual(code, 2, said)
      self.assertIn(why, said)
    code, said = self.prepare(self.write('y.csv', 'user,item,time\nu,i,1700000000\n'),
                              '--events=view')
    self.assertEqual(code, 2)
    self.assertIn('which column holds the kinds of events', said)

  def test_gaps_and_spikes_of_days_are_told(self):
    days = [n for n in range(60) if not 20 <= n < 29]
    lines = [f'u{n % 9},i{n % 4},{1_700_006_400 + 86_400 * day + n}' for day in days
             for n in range(300 if day == 40 else 7)]
    code, said = self.prepare(self.write('log.csv', 'user,item,time\n' + '\n'.join(lines)))
    self.assertEqual(code, 0, said)
    self.assertIn('- gap: no interaction from 2023-12-05 to 2023-12-13 (9 days)\n', said)
    self.assertIn('- spike: 2023-12-25 has 300 interactions, 43 times a usual day\n', said)
    self.assertEqual(said.count('- gap') + said.count('- spike'), 2)


class DatabaseCase(Exports):

  def tables(self, execute, time='TEXT'):
    """Fills a database with orders, products and something else, by a function that executes."""
    execute(f'CREATE TABLE orders (id INTEGER, customer_id NUMERIC(12, 0), product_id TEXT, '
            f'ordered_at {time}, qty INTEGER)')
    execute('CREATE TABLE products (product_id TEXT, product_name TEXT, price NUMERIC(8, 2))')
    execute('CREATE TABLE settings (name TEXT, value TEXT)')
    for n, (user, item, when, quantity, _) in enumerate(ROWS):
      execute(f"INSERT INTO orders VALUES ({n}, {user}, '{item}', '{when}', {quantity})")
    for item, price in PRODUCTS:
      execute(f"INSERT INTO products VALUES ('{item}', '{GERMAN(item)}', {price})")

  def in_database(self, address, *flags):
    """Checks what is found in a database, by itself and by queries."""
    code, said = self.prepare(address, *flags)
    self.assertEqual(code, 0, said)
    self.assertIn('table orders of a database', said)
    data = loading.load_data(self.out)
    self.check(data)
    self.assertEqual(data.catalog.columns['title'], [GERMAN(i) for i, _ in PRODUCTS])
    self.assertEqual(data.catalog.columns['price'], [p for _, p in PRODUCTS])
    query = ('SELECT o.customer_id AS who, o.product_id AS sku, ordered_at, p.price FROM orders o '
             "JOIN products p USING (product_id) WHERE product_name <> ':x'")
    code, said = self.prepare(address, f'--query={query}', '--columns=user=who',
                              '--items-query=products')
    self.assertEqual(code, 0, said)
    self.check(loading.load_data(self.out))
    for wrong, why in (('clients', 'which table? It has orders (id, customer_id, product_id, '),
                       ('SELECT x FROM nowhere', 'nowhere')):
      code, said = self.prepare(address, f'--query={wrong}')
      self.assertEqual(code, 2, said)
      self.assertIn(why, said)


@absltest.skipUnless(has('duckdb', 'sqlalchemy'), 'needs: pip install "recjax[data]"')
class SqliteTest(DatabaseCase):

  def test_a_database_of_sqlite(self):
    path = self.folder / 'shop.db'
    with contextlib.closing(sqlite3.connect(path)) as con:
      self.tables(con.execute)
      con.commit()
    self.in_database(path)
    with contextlib.closing(sqlite3.connect(path)) as con:
      con.execute("UPDATE orders SET ordered_at = 'soon' WHERE id = 3")
      con.commit()
    code, said = self.prepare(path)
    self.assertEqual(code, 2)
    self.assertIn('shop.db row 4: the time is neither a number nor a date', said)


@absltest.skipUnless(has('duckdb', 'sqlalchemy', 'psycopg'),
                     'needs: pip install "recjax[data,postgres]"')
class PostgresTest(DatabaseCase, databases.WithDatabases):

  def test_tables_queries_and_what_is_refused(self):
    import psycopg
    bare = self.databases.place('postgresql')
    address = bare.replace('recjax@', 'recjax:se%3Acret@')
    with psycopg.connect(address, autocommit=True) as con:
      self.tables(con.execute, 'TIMESTAMPTZ')
    self.in_database(address)
    with psycopg.connect(address, autocommit=True) as con:
      con.execute('CREATE SCHEMA old')
      con.execute('CREATE SEQUENCE counter')
      con.execute('ALTER TABLE orders SET SCHEMA old')
    code, said = self.prepare(address.replace('@/', '@@/'), '--query=old.orders')
    self.assertEqual(code, 0, said)
    self.assertNotIn('cret', said)
    self.check(loading.load_data(self.out))
    for path in self.out.iterdir():
      self.assertNotIn(b'cret', path.read_bytes())
    code, said = self.prepare(address, "--query=SELECT nextval('counter')")
    self.assertEqual(code, 2, said)
    self.assertIn('in a read-only transaction', said)
    for wrong, why in (
        (address.replace('recjax:', 'nobody:'), 'role "nobody" does not exist'),
        (address.replace('/d', '/none'), 'does not exist'),
        (address.replace('host=', 'host=/no'), 'No such file or directory')):
      code, said = self.prepare(wrong, '--query=old.orders')
      self.assertEqual(code, 2, said)
      self.assertIn(why, said)
      self.assertNotIn('cret', said)


@absltest.skipUnless(has('duckdb', 'charset_normalizer'), 'needs: pip install "recjax[data]"')
class ChoiceTest(Exports):
  """Columns that names alone would choose wrongly: files that failed, made small."""

  def write(self, name, head, line, encoding='utf-8', sep=';'):
    path = self.folder / name
    path.write_bytes(text(sep, head.replace(';', sep), line, encoding))
    return path

  def right(self, path, *flags):
    code, said = self.prepare(path, '--yes', *flags)
    self.assertEqual(code, 0, said)
    self.check(loading.load_data(self.out))
    return said

  def test_a_number_that_each_line_has_for_itself_is_no_item(self):
    path = self.write('magento.csv', 'item_id;order_id;product_id;customer_id;created_at',
                      lambda u, i, t, q, p: f'{stamp(t)};{stamp(t) // 9};{i};{u};{t}')
    self.assertIn('product_id   is item', self.right(path))

  def test_notes_and_empty_columns_are_no_users(self):
    path = self.write('woo.csv', 'Customer Note;user_id;Email (Billing);SKU;Order Date',
                      lambda u, i, t, q, p: f'{"please ring" * (q > 2)};;{u};{i};{t}')
    self.assertIn('Email (Billing)  is user', self.right(path))

  def test_guests_and_lines_of_sums_are_left_out_and_told(self):
    path = self.write('square.csv', 'Customer ID;SKU;Date',
                      lambda u, i, t, q, p: f'{u};{i};{t}')
    path.write_text(path.read_text() + f';A-000;{START}\n' * 3 + f'1001;;{START}\n' * 3)
    said = self.right(path)
    self.assertIn('left out: 3 rows, Customer ID is empty', said)
    self.assertIn('left out: 3 rows, SKU is empty', said)

  def test_the_state_of_an_order_holds_for_all_its_lines(self):
    path = self.write('shopify.csv', 'Name;Email;Financial Status;Created at;Lineitem name;'
                      'Lineitem sku', lambda u, i, t, q, p: f'#{stamp(t)};{u};paid;{t};x;{i}')
    path.write_text(path.read_text() + f'#9;1001;refunded;{START};x;A-000\n#9;1001;;;x;A-001\n')
    self.assertIn('left out: 2 rows, returns: refunded', self.right(path))

  @parameterized.parameters(
      ('Bezahlt am', 'Auftragsdatum', 'Kundennummer', 'Artikelnummer', 'cp1252'),
      ('Data wysy\u0142ki', 'Data z\u0142o\u017cenia', 'Login klienta', 'SKU', 'cp1250'),
      ('\xd6deme Tarihi', 'Sipari\u015f Tarihi', '\xdcye ID', 'Stok Kodu', 'iso-8859-9'),
      ('Date de livraison', 'Date', 'ID client', 'R\xe9f\xe9rence produit', 'cp1252'),
      ('\uacb0\uc81c\uc77c\uc2dc', '\uc8fc\ubb38\uc77c\uc2dc', '\uc8fc\ubb38\uc790ID',
       '\uc0c1\ud488\ucf54\ub4dc', 'cp949'),
      ('\u767a\u9001\u5b8c\u4e86\u65e5\u6642', '\u6ce8\u6587\u65e5\u6642',
       '\u6ce8\u6587\u8005\u30e1\u30fc\u30eb\u30a2\u30c9\u30ec\u30b9',
       '\u5546\u54c1\u7ba1\u7406\u756a\u53f7', 'cp932'),
      ('\u8ba2\u5355\u4ed8\u6b3e\u65f6\u95f4', '\u8ba2\u5355\u521b\u5efa\u65f6\u95f4',
       '\u4e70\u5bb6\u4f1a\u5458\u540d', '\u5546\u54c1ID', 'gb18030'),
      ('\u0414\u0430\u0442\u0430 \u043e\u043f\u043b\u0430\u0442\u044b',
       '\u0414\u0430\u0442\u0430', '\u041a\u043e\u043d\u0442\u0440\u0430\u0433\u0435\u043d'
       '\u0442', '\u041d\u043e\u043c\u0435\u043d\u043a\u043b\u0430\u0442\u0443\u0440\u0430.'
       '\u041a\u043e\u0434', 'cp1251'),
      ('\u0397\u03bc/\u03bd\u03af\u03b1 \u03a0\u03b1\u03c1\u03ac\u03b4\u03bf\u03c3\u03b7'
       '\u03c2', '\u0397\u03bc/\u03bd\u03af\u03b1', '\u039a\u03c9\u03b4. \u03a0\u03b5\u03bb'
       '\u03ac\u03c4\u03b7', '\u039a\u03c9\u03b4. \u0395\u03af\u03b4\u03bf\u03c5\u03c2',
       'cp1253'))
  def test_the_order_comes_before_payment_and_shipping(self, later, when, user, item, encoding):
    path = self.write(f'{encoding}.csv', f'{later};{user};EAN;{item};{when}', lambda u, i, t, q, p:
                      f'{t + 40 * HOUR};{u};40{i[2:]};{i};{t}', encoding)
    self.assertIn(f'{when}', self.right(path))

  def test_things_of_an_order_that_stand_in_a_list(self):
    path = self.folder / 'orders.jsonl'
    path.write_text(''.join(json.dumps({
        'user_id': None, 'user_pseudo_id': str(u), 'event_date': f'{t:%Y%m%d}',
        'event_timestamp': stamp(t) * 10 ** 6, 'event_params': [{'key': 'a', 'value': {'x': 1}}],
        'items': [{'item_id': i, 'price': p}, *([{'item_id': i, 'price': p}] * (u == 1001))]})
                            + '\n' for u, i, t, q, p in ROWS))
    code, said = self.prepare(path, '--yes')
    self.assertEqual(code, 0, said)
    data = loading.load_data(self.out)
    self.assertLen(data.interactions.items, len(ROWS) + sum(row[0] == 1001 for row in ROWS))
    self.assertIn('event_timestamp', said)

  def test_numbers_of_orders_are_no_times_and_the_only_table_is_meant(self):
    path = self.folder / 'shop.sqlite'
    con = sqlite3.connect(path)
    con.execute('CREATE TABLE bestellingen (verkoop, klantnr, artikelnr, ean, besteldatum)')
    con.executemany('INSERT INTO bestellingen VALUES (?, ?, ?, ?, ?)', [
        (2_000_007_000_000_000 + n, u, i, '871' + i[2:], f'{t.day}-{t.month}-{t.year} {t:%H:%M}')
        for n, (u, i, t, q, p) in enumerate(ROWS)])
    con.commit()
    con.close()
    self.assertIn('artikelnr', self.right(path))


if __name__ == '__main__':
  absltest.main()

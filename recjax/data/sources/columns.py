"""Which column of a table is what: by its name, in many languages, or by its values."""
import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from recjax.data import times
from recjax.errors import ConfigError

# Names that are understood without being told, the first one found; blanks and signs do not count.
INTERACTION_NAMES = {
    'user': ('user_id', 'user', 'userid', 'reviewerid', 'customer_id', 'uid', 'customer',
             'customer_number', 'client_id', 'member_id', 'visitor_id', 'kunde', 'kunden_id',
             'kundennummer', 'benutzer', 'user_pseudo_id', 'anonymous_id', 'buyer_username',
             '会員番号', '会員id', '下单帐号', '下单账号', '买家会员名', '买家昵称', '买家id',
             '用户id', '会员id', '회원id', '주문자id', '구매자id'),
    'item': ('item_id', 'item', 'itemid', 'parent_asin', 'asin', 'product_id', 'movieid', 'iid',
             'isbn', 'sku', 'article_id', 'product', 'article', 'artikelnummer', 'artikel',
             'artikel_id', 'produkt_id', 'produkt', 'news_id', 'book_id', 'track_id', 'song_id'),
    'time': ('timestamp', 'time', 'times', 'unixreviewtime', 'datetime', 'date', 'ts',
             'created_at', 'created', 'creation_date', 'event_time', 'event_date', 'event_ts',
             'order_date', 'order_ts', 'order_time', 'ordered_at', 'purchase_date', 'purchased_at',
             'purchased_on', 'purchase_time', 'review_date', 'review_time', 'visit_time',
             'click_time', 'unix_time', 'unix_timestamp', 'epoch', 'occurred_at', 'when',
             'rating_timestamp', 'bestelldatum', 'kaufdatum', 'datum', 'zeit', 'zeitpunkt',
             'zeitstempel', 'uhrzeit', 'fecha', 'horodatage', 'tstamp'),
    'rating': ('rating', 'ratings', 'stars', 'overall', 'score', 'book_rating', 'bewertung'),
    'event': ('event', 'event_type', 'event_name', 'action', 'action_type', 'behavior',
              'behaviour', 'behavior_type', 'interaction_type', 'activity', 'financial_status',
              'order_status', 'status', 'type', 'ereignis', 'aktion', 'evento', 'acción'),
    'quantity': ('quantity', 'qty', 'lineitem_quantity', 'units', 'count', 'pieces', 'menge',
                 'anzahl', 'stück', 'stückzahl', 'quantité', 'qté', 'cantidad', 'quantità',
                 'quantidade', 'aantal', 'ilość', 'antal', 'množství', 'adet', 'количество', '数量',
                 '수량'),
}
ITEM_NAMES = {
    'item': INTERACTION_NAMES['item'],
    'title': ('title', 'name', 'product_name', 'item_name', 'product_title', 'book_title',
              'bezeichnung', 'titel', 'produktname', 'artikelname', 'artikelbezeichnung',
              'product', 'article', 'artikel', 'produkt', 'lineitem_name', 'description', 'nom',
              'nom_du_produit', 'libellé', 'désignation', 'titre', 'nombre', 'título', 'titulo',
              'nome', 'titolo', 'naam', 'productnaam', 'nazwa', 'namn', 'navn', 'název', 'ad',
              'ürün_adı', 'название', 'наименование', '商品名', '名称', '商品名称', '상품명'),
    'brand': ('brand', 'store', 'maker', 'manufacturer', 'marke', 'hersteller', 'vendor', 'marque',
              'marca', 'merk', 'marka', 'značka', 'märke', 'бренд', 'ブランド', '品牌', '브랜드'),
    'categories': ('categories', 'category', 'genres', 'class', 'kategorie', 'kategorien',
                   'product_type', 'catégorie', 'catégories', 'categoría', 'categoria', 'categorie',
                   'kategoria', 'kategori', 'категория', 'カテゴリ', '分类', '类目', '카테고리'),
    'description': ('description', 'text', 'beschreibung', 'descripción', 'descrizione',
                    'descrição', 'omschrijving', 'opis', 'beskrivning', 'описание', '説明'),
    'price': ('price', 'preis', 'unit_price', 'prix', 'precio', 'prezzo', 'preço', 'prijs', 'cena',
              'pris', 'fiyat', 'цена', '価格', '单价', '价格', '가격'),
}
# Beginnings of words for user and item, of words that say more of them and are no ids, and ids.
_STEMS = {
    'user': ('user', 'usr', 'customer', 'cust', 'client', 'buyer', 'shopper', 'member', 'visitor',
             'account', 'reviewer', 'author', 'listener', 'consumer', 'subscriber', 'contact',
             'debitor', 'kund', 'käufer', 'besteller', 'auftraggeber', 'nutzer', 'benutzer',
             'usuari', 'comprador', 'acheteur', 'utilisateur', 'utente', 'klant', 'gebruiker',
             'bruker', 'bruger', 'köpare', 'asiakas', 'klient', 'użytkown', 'nabywc', 'zákazn',
             'vevő', 'ügyfél', 'müşteri', 'kullanıcı', 'üye', 'πελάτ', 'клиент', 'покупател',
             'пользовател', 'контрагент'),
    'item': ('item', 'product', 'prod', 'article', 'artikel', 'produ', 'sku', 'asin', 'isbn', 'ean',
             'upc', 'gtin', 'barcode', 'jan', 'stockcode', 'stock', 'goods', 'material', 'movie',
             'film', 'book', 'track', 'song', 'news', 'recipe', 'game', 'app', 'video', 'course',
             'listing', 'business', 'articul', 'artícul', 'référence', 'prodott', 'articol',
             'artigo', 'vare', 'varu', 'artik', 'tuote', 'towar', 'zboží', 'cikk', 'termék', 'ürün',
             'stok', 'barkod', 'προϊόν', 'είδ', 'товар', 'артикул', 'номенклатур')}
_OTHER = ('name', 'title', 'titel', 'titre', 'titul', 'desc', 'beschr', 'bezeich', 'libell',
          'désign', 'nazwa', 'naam', 'namn', 'navn', 'city', 'country', 'state', 'zip', 'postal',
          'address', 'street', 'phone', 'mail', 'email', 'gender', 'birth', 'segment', 'group',
          'type', 'class', 'categ', 'kateg', 'brand', 'marke', 'price', 'preis', 'prix', 'preci',
          'prezz', 'cost', 'total', 'amount', 'sum', 'tax', 'discount', 'qty', 'quant', 'count',
          'menge', 'anzahl', 'date', 'datum', 'data', 'time', 'status', 'order', 'invoice',
          'transaction', 'session', 'agent', 'url', 'image', 'weight', 'size', 'color', 'level',
          'manager', 'vat', 'paid', 'nama', 'rating', 'review', 'age', 'value', 'location',
          'note', 'comment', 'message', 'adı', 'наимен', 'назван', '名')
_ID = re.compile(r'n|no|num|nbr|key|cód|cod|nomor|kode|ref|hash|uuid|guid|sku|asin|isbn|ean|'
                 r'gtin|upc|handle|slug|login|lineitem|du|de|del|of|numéro|número|código|codigo|codice|kód|číslo|номер|'
                 r'код|ид|κωδ|κωδικός|kodu|'
                 r'\w*(id|ids|szám|kód|nr|nro|nummer|number|numer|numero|code|kode|kod)')
_CJK = {'user': ('顧客', '会員', 'ユーザー', '注文者', '購入者', '客户', '用户', '会员', '买家',
                 '고객', '회원', '사용자', '주문자', '구매자'),
        'item': ('商品', '品番', '产品', '상품', '제품')}
_CJK_ID = ('id', '番号', '管理番号', 'コード', '编号', '编码', '号', '번호', '코드')
_CJK_EMAIL = ('email', '邮箱', '이메일')
_EMAIL = {'email', 'mail', 'emailadres', 'emailadresse'}
_EMAIL_WORDS = {*_EMAIL, 'billing', 'bill', 'to', 'from', 'address', '請求先'}
_BARCODE = re.compile(r'(?<![a-z])(ean|upc|gtin|isbn|jan|barcode|barkod)')
# Words of the first step of a purchase, and of later ones.
_ORDER = re.compile(
    r'order|orden|purchas|sale|sold|creat|placed|added|rendel|pesanan|dibuat|bestell|auftrag|kauf|besteld|command|achat|pedido|'
    r'venta|compra|criaç|creaci|vendit|ordin|zamów|złożen|sipariş|заказ|продаж|注文|購入|下单|'
    r'创建|주문|구매|objedn|beställ|παραγγελ')
_LATER = re.compile(
    r'paid|pay|fulfil|ship|deliver|updat|modif|chang|cancel|due|promis|estimat|report|received|'
    r'return|refund|previous|touch|módos|scadenza|bayar|kirim|selesai|birth|expir|bezahl|zahlung|versand|liefer|rechnung|factur|'
    r'livraison|paiement|expédi|envío|envio|pago|entrega|camino|betaal|verzend|lever|płat|wysył|'
    r'potwierdz|ödeme|kargo|teslim|оплат|отгруз|достав|決済|入金|発送|キャンセル|確認|確定|期限|付款|'
    r'支付|发货|确认|收货|결제|배송|입금|παράδοσ|παραδ|πληρωμ|spediz|pagament|consegna')
BARE = ('user', 'customer', 'kunde', 'benutzer', 'item', 'product', 'article', 'artikel', 'produkt')
_NUMBERS = re.compile(r'phone|telef|mobil|cellular|handy|телефон|電話|电话|전화|'
                      r'(?<![a-z])(ids?|no|nr|num|number|code|sku|asin|isbn|ean|gtin|tel|zip|plz|'
                      r'order|session|bestellung|auftrag)(?![a-z])|id$|nummer$|number$')
_NUMBERED = re.compile(r'番号|编号|编码|单号|번호|№')  # which may begin with a day
SURE = ('unixreviewtime',)  # Amazon's reviews hold the same day as a text beside it
_TIMELY = re.compile(r'time|date|(?<![a-z])(ts|at|day)(?![a-z])|stamp|zeit|datum|epoch|when|fecha|'
                     r'heure|дата|время|時|日付|时间|日期|날짜|일시|tarih')


def parse_pairs(text: str) -> dict[str, str]:
  """{'a': 'b', 'c': 'd'} of 'a=b,c=d'. Raises ConfigError for another `text`."""
  pairs = {}
  for part in filter(None, text.split(',')):
    ours, equals, theirs = (p.strip() for p in part.partition('='))
    if not equals or not ours:
      raise ConfigError(f'{part!r} maps no column; write OURS=THEIRS, as in user=customer_id')
    pairs[ours] = theirs
  return pairs


def plain_name(name: object) -> str:
  """A column's name without what differs between spellings: 'orderdate' of 'Order-Date'."""
  return re.sub(r'[\W_]', '', str(name).lower())


def words(name: object) -> str:
  """The words of a column's name: 'order time utc' of 'orderTime_utc'."""
  return re.sub(r'[\W_]+', ' ', re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', str(name))).strip().lower()


def find(names: Iterable[str], known: dict[str, Collection[str]],
         unfit: Mapping[str, Collection[str]] = MappingProxyType({})) -> dict[str, str]:
  """Which of the `names` of columns is meant by each of ours, '' for none.

  known: usual spellings of each of ours, in order of preference. One column is one thing. Names of
  ids come before those of things: `Customer ID` before `Customer`. unfit: of some of ours, columns
  that they cannot be.
  """
  names = [str(name) for name in names]
  spellings = {plain_name(name): name for name in reversed(names)}
  found: dict[str, str] = {}
  for ours, usual in known.items():
    free = {name: spellings[plain] for name in usual if (plain := plain_name(name)) in spellings
            and spellings[plain] not in found.values()
            and spellings[plain] not in unfit.get(ours, ())}
    ids = [theirs for name, theirs in free.items() if name not in BARE]
    if ours in _STEMS and not ids:
      ids = best(names, ours, {*found.values(), *unfit.get(ours, ())})[:1] or [*free.values()]
    found[ours] = next(iter(ids if ours in _STEMS else free.values()), '')
  return found


def best(names: Iterable[str], ours: str, taken: Collection[str], least: int = 2,
         several: bool = False) -> list[str]:
  """The columns whose `names` say most clearly that they are the user or the item: one, or none.

  ours: 'user' or 'item'. taken: columns that are something else. least: how clearly, from 1 (some
  word of it) to 3 (an id of it). Where several say it as clearly, there is none, or all with
  `several`. A shop's own number comes before a barcode.
  """
  clear = {name: _clearness(name, ours) for name in names if name not in taken}
  top = max(clear.values(), default=0)
  first = [name for name, value in clear.items() if value == top]
  own = [name for name in first if not _BARCODE.search(words(name))]  # the shop's own number
  first = own or first
  return first if top >= least and (len(first) == 1 or several) else []


def _clearness(name: str, ours: str) -> int:
  """How clearly the `name` of a column says user or item: 3 an id of it, 2 it and no more, 1 words
  beside it, 0 not at all. An e-mail address of a user is 2."""
  text = words(name)
  if ours == 'user' and 'メールアドレス' in text and text != 'メールアドレス':
    text = text.replace('メールアドレス', 'email ')  # of the bill, say
  for cjk in _CJK[ours]:
    if cjk in text:
      rest = text.replace(cjk, '').strip()
      return 2 if not rest or rest in _CJK_EMAIL else 3 if rest in _CJK_ID else 0
  parts = text.replace('e mail', 'email').replace('username', 'user login').split()
  role = [part.startswith(_STEMS[ours]) and not part.startswith('tracking') and part != 'custom'
          for part in parts]
  if ours == 'user' and set(parts) & _EMAIL:
    return 2 if any(role) or not set(parts) - _EMAIL_WORDS else 0
  rest = [part for part, is_role in zip(parts, role) if not is_role]
  if 'nom' in rest:
    return 0
  if not any(role) or any(part.startswith(_OTHER) for part in rest):
    return 0
  compound = [part for part, is_role in zip(parts, role) if is_role and part not in _STEMS[ours]]
  if any(part.endswith(('name', 'namn', 'navn', 'naam', 'name1', 'typ', 'gruppe', 'preis')) or
         'bezeich' in part for part in compound):
    return 0
  if any(_ID.fullmatch(part) for part in parts):
    return 2 if _BARCODE.search(text) else 3
  return 1 if rest else 2


def unlike_ids(rows: Collection[dict], names: Iterable[str]) -> set[str]:
  """The `names` of columns whose values are no ids of users or items: mostly empty, all the same
  (unless they are called ids), long texts, or no single values. rows: a sample."""
  unlike = set()
  usual = {plain_name(name) for ours in ('user', 'item') for name in INTERACTION_NAMES[ours]}
  for name in names:
    values = [row.get(name) for row in rows]
    filled = [value for value in values if value is not None and str(value).strip()]
    long = [value for value in filled if isinstance(value, str) and (
        len(value) > 80 or '\n' in value)]
    if len(filled) >= 20 and len(set(map(str, filled))) == 1 and plain_name(name) not in usual:
      unlike.add(name)
    if 2 * len(filled) < len(values) or 4 * len(long) > len(filled) or any(
        isinstance(value, list | dict) for value in filled[:20]):
      unlike.add(name)
  return unlike


def nested_items(rows: Iterable[dict]) -> str:
  """The column whose values are lists of what was bought, each with an id of an item; '' for none.

  It may be within another, 'properties.products'. rows: a sample."""
  for row in rows:
    inner = {f'{name}.{key}': part for name, value in row.items() if isinstance(value, dict)
             for key, part in value.items()}
    for name, value in [*row.items(), *inner.items()]:
      if isinstance(value, list) and value and all(isinstance(part, dict) for part in value) and (
          find(value[0], {'item': INTERACTION_NAMES['item']})['item']):
        return name
  return ''


def order_column(rows: Collection[dict]) -> str:
  """The column of the numbers of orders that stand on several lines, '' for none. rows: a sample.
  """
  names = list(next(iter(rows), {}))
  numbers = [name for name in names if _ORDER.search(words(name)) and (
      _NUMBERS.search(words(name)) or _NUMBERED.search(words(name)) or re.search(
          r'№|номер|número|numero|numéro', words(name)))]
  numbers += ['Name'] * ({'Name', 'Lineitem name'} <= set(names))  # Shopify
  for name in numbers:
    values = [row.get(name) for row in rows]
    if any(a == b and a not in (None, '') for a, b in zip(values, values[1:])):
      return name
  return ''


def one_each(rows: Collection[dict], name: str) -> bool:
  """Whether every row has another value in the column `name`, as numbers of lines have. rows: a
  sample; a few tell nothing."""
  values = [str(value) for row in rows if (value := row.get(name)) not in (None, '')]
  return len(values) >= 30 and len(set(values)) == len(values)


def recognized(names: Iterable[str]) -> int:
  """How much of the `names` of columns is known: usual names, and words in them."""
  names = list(names)
  usual = {plain_name(name) for spellings in (*INTERACTION_NAMES.values(), *ITEM_NAMES.values())
           for name in spellings}
  return sum((plain_name(name) in usual) + (_clearness(name, 'user') > 1)
             + (_clearness(name, 'item') > 1) + bool(_ORDER.search(words(name)))
             + bool(_TIMELY.search(words(name))) for name in names)


def fits_interactions(names: list[str]) -> bool:
  """Whether a table with columns of these `names` could be one of interactions."""
  found = find(names, INTERACTION_NAMES)
  return bool(found['user'] and found['item'])


def fits_items(names: list[str]) -> bool:
  """Whether a table with columns of these `names` could be one of items."""
  found = find(names, ITEM_NAMES)
  return bool(found['item'] and found['title']) and not fits_interactions(names)


def may_be_times(name: str) -> bool:
  """Whether numbers of a column may be times, by the words of its name: not those of an order."""
  return bool(_TIMELY.search(name) or not _NUMBERS.search(name))


def time_candidates(sample: list[dict], taken: Collection[str]) -> tuple[list[str], list[str], str]:
  """Columns that could hold the times, best first, those of hours alone, and how they were found.

  sample: rows. taken: columns that are something else. 'by its name' where names tell.
  """
  profiles = {}
  for name in dict.fromkeys(name for row in sample for name in row):
    if name not in taken and not _NUMBERED.search(words(name)):
      profiles[name] = times.ColumnProfile()
      for number, row in enumerate(sample):
        profiles[name].add(row.get(name), number)
  known = {plain_name(name) for name in INTERACTION_NAMES['time']}
  usual = [name for name in profiles if plain_name(name) in known]
  exact = {plain_name(name): name for name in usual if name in INTERACTION_NAMES['time']}
  usual = [name for name in usual if exact.get(plain_name(name), name) == name]  # not 'ti{me'
  dated = [name for name, profile in profiles.items() if profile.dated()]
  clocks = [name for name, profile in profiles.items() if 'clock' in profile.kinds]
  likely = [name for name, profile in profiles.items() if profile.like_times()
            and (name in dated or may_be_times(words(name)))]
  strong = [name for name in usual if name in likely] or usual
  if sure := [name for name in strong if plain_name(name) in SURE][:1]:
    return sure, [], 'by its name'
  timely = [name for name in likely if _TIMELY.search(words(name))]
  several = list(dict.fromkeys([*strong, *dated, *timely] if strong else likely))
  several = [name for name in several if name not in clocks]
  ranks = {name: _step(name, profiles[name]) for name in several}
  several.sort(key=ranks.__getitem__)
  first = len(several) > 1 and ranks[several[0]] < ranks[several[1]]
  if first and not profiles[several[0]].days_alone():
    clocks = []  # the hour stands in it
  return several, clocks, 'by its name' if strong or first else 'by its values'


def _step(name: str, profile: times.ColumnProfile) -> tuple[bool, bool, bool]:
  """How far a column of times is from when an order was placed: whether its name is of a later
  step, whether it does not name the first one, whether it holds days alone."""
  text = words(name)
  later, order = bool(_LATER.search(text)), bool(_ORDER.search(text))
  return later, not order, profile.days_alone()


def numeric_candidates(sample: list[dict], taken: Collection[str]) -> list[str]:
  """Columns of numbers that could be times by these alone. sample, taken: as above."""
  found = []
  for name in sample[0]:
    profile = times.ColumnProfile()
    for number, row in enumerate(sample):
      profile.add(row.get(name), number)
    if name not in taken and profile.like_times():
      found.append(str(name))
  return found

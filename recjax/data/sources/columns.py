"""Which column of a table is what: by its name, in many languages, or by its values."""
import re
from collections.abc import Collection, Iterable

from recjax.data import times
from recjax.errors import ConfigError

# Names that are understood without being told, the first one found; blanks and signs do not count.
INTERACTION_NAMES = {
    'user': ('user_id', 'user', 'userid', 'reviewerid', 'customer_id', 'uid', 'customer',
             'customer_number', 'client_id', 'member_id', 'visitor_id', 'kunde', 'kunden_id',
             'kundennummer', 'benutzer'),
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
             'vevő', 'ügyfél', 'müşteri', 'kullanıcı', 'πελάτ', 'клиент', 'покупател',
             'пользовател'),
    'item': ('item', 'product', 'prod', 'article', 'artikel', 'produ', 'sku', 'asin', 'isbn', 'ean',
             'upc', 'gtin', 'barcode', 'jan', 'stockcode', 'stock', 'goods', 'material', 'movie',
             'film', 'book', 'track', 'song', 'news', 'recipe', 'game', 'app', 'video', 'course',
             'listing', 'business', 'articul', 'artícul', 'référence', 'prodott', 'articol',
             'artigo', 'vare', 'varu', 'artik', 'tuote', 'towar', 'zboží', 'cikk', 'termék', 'ürün',
             'προϊόν', 'товар', 'артикул')}
_OTHER = ('name', 'title', 'titel', 'titre', 'titul', 'desc', 'beschr', 'bezeich', 'libell',
          'désign', 'nom', 'nazwa', 'naam', 'namn', 'navn', 'city', 'country', 'state', 'zip',
          'postal', 'address', 'street', 'phone', 'mail', 'email', 'gender', 'birth', 'segment',
          'group', 'type', 'class', 'categ', 'kateg', 'brand', 'marke', 'price', 'preis', 'prix',
          'preci', 'prezz', 'cost', 'total', 'amount', 'sum', 'tax', 'discount', 'qty', 'quant',
          'count', 'menge', 'anzahl', 'date', 'datum', 'data', 'time', 'status', 'order', 'invoice',
          'transaction', 'session', 'agent', 'url', 'image', 'weight', 'size', 'color', 'level',
          'manager', 'rating', 'review', 'age', 'наимен', 'назван', '名')
_ID = re.compile(r'n|no|num|nbr|key|cód|ref|hash|uuid|guid|sku|asin|isbn|ean|gtin|upc|handle|slug|'
                 r'login|lineitem|du|de|del|of|numéro|número|código|codigo|codice|kód|číslo|номер|'
                 r'код|ид|κωδικός|kodu|'
                 r'\w*(id|ids|szám|kód|nr|nro|nummer|number|numer|numero|code|kode|kod)')
_CJK = {'user': ('顧客', '会員', 'ユーザー', '客户', '用户', '会员', '고객', '회원', '사용자'),
        'item': ('商品', '品番', '产品', '상품', '제품')}
_CJK_ID = ('id', '番号', 'コード', '编号', '编码', '号', '번호', '코드')
BARE = ('user', 'customer', 'kunde', 'benutzer', 'item', 'product', 'article', 'artikel', 'produkt')
_NUMBERS = re.compile(r'(?<![a-z])(ids?|no|nr|num|number|code|sku|asin|isbn|ean|gtin|phone|zip|plz|'
                      r'order|session|bestellung|auftrag)(?![a-z])|id$|nummer$|number$')
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


def find(names: Iterable[str], known: dict[str, Collection[str]]) -> dict[str, str]:
  """Which of the `names` of columns is meant by each of ours, '' for none.

  known: usual spellings of each of ours, in order of preference. One column is one thing. Names of
  ids come before those of things: `Customer ID` before `Customer`.
  """
  names = [str(name) for name in names]
  spellings = {plain_name(name): name for name in reversed(names)}
  found: dict[str, str] = {}
  for ours, usual in known.items():
    free = {name: spellings[plain] for name in usual if (plain := plain_name(name)) in spellings
            and spellings[plain] not in found.values()}
    ids = [theirs for name, theirs in free.items() if name not in BARE]
    if ours in _STEMS and not ids:
      ids = best(names, ours, found.values())[:1] or [*free.values()]
    found[ours] = next(iter(ids if ours in _STEMS else free.values()), '')
  return found


def best(names: Iterable[str], ours: str, taken: Collection[str], least: int = 2) -> list[str]:
  """The columns whose `names` say most clearly that they are the user or the item: one, or none.

  ours: 'user' or 'item'. taken: columns that are something else. least: how clearly, from 1 (some
  word of it) to 3 (an id of it). Where several say it as clearly, there is none.
  """
  clear = {name: _clearness(name, ours) for name in names if name not in taken}
  top = max(clear.values(), default=0)
  first = [name for name, value in clear.items() if value == top]
  return first if top >= least and len(first) == 1 else []


def _clearness(name: str, ours: str) -> int:
  """How clearly the `name` of a column says user or item: 3 an id of it, 2 it and no more, 1 words
  beside it, 0 not at all. An e-mail address of a user is 2."""
  text = words(name)
  for cjk in _CJK[ours]:
    if cjk in text:
      rest = text.replace(cjk, '').strip()
      return 2 if not rest else 3 if rest in _CJK_ID else 0
  parts = text.replace('e mail', 'email').replace('username', 'user login').split()
  role = [part.startswith(_STEMS[ours]) for part in parts]
  if ours == 'user' and set(parts) & {'email', 'mail'}:
    return 2 if any(role) or len(parts) == 1 else 0
  rest = [part for part, is_role in zip(parts, role) if not is_role]
  if not any(role) or any(part.startswith(_OTHER) for part in rest):
    return 0
  compound = [part for part, is_role in zip(parts, role) if is_role and part not in _STEMS[ours]]
  if any(part.endswith(('name', 'namn', 'navn', 'naam', 'name1', 'typ', 'gruppe', 'preis')) or
         'bezeich' in part for part in compound):
    return 0
  if any(_ID.fullmatch(part) for part in parts):
    return 3
  return 1 if rest else 2


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
    if name not in taken:
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
  return ([name for name in several if name not in clocks], clocks,
          'by its name' if strong else 'by its values')


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

"""Times: what a column holds is told from all values, order is kept to its resolution, or asked."""
import datetime
import decimal
import random

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from recjax.data import times
from recjax.errors import ConfigError, DataError
from tests.long import examples

DAY = datetime.datetime(2024, 1, 31, tzinfo=datetime.UTC)
AT = int(DAY.timestamp())


def seconds(*when):
  return int(datetime.datetime(*when, tzinfo=datetime.UTC).timestamp())


def decide(values, form='', column='when'):
  profile = times.ColumnProfile()
  for line, value in enumerate(values, 2):
    profile.add(value, line)
  return times.choose_parser(profile, form, 'x.csv', column)


class TimesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('1706659200', 's', 1, AT), (AT, 's', 1, AT), (AT * 1000 + 7, 'ms', 1000, AT * 1000 + 7),
      (AT * 10 ** 6, 'us', 10 ** 6, AT * 10 ** 6), (AT * 10 ** 9 + 1, 'ns', 10 ** 9,
                                                    AT * 10 ** 9 + 1),
      ('1.7066592e9', 's', 1, AT), (f'{AT}.5', 's', 1000, AT * 1000 + 500),
      (f'{AT}123.25', 'ms', 10 ** 6, (AT * 1000 + 123) * 1000 + 250),
      (f'{AT}.123456789', 's', 10 ** 9, AT * 10 ** 9 + 123456789),
      (float(AT) + .25, 's', 1000, AT * 1000 + 250), (decimal.Decimal(AT), 's', 1, AT),
      ('20240131', 'ymd', 1, AT), (20240131, 'ymd', 1, AT), ('202401310130', 'ymdhm', 1, AT + 5400),
      ('20240131013005', 'ymdhms', 1, AT + 5405), ('19753.5', 'days', 1000, (AT + 43200) * 1000),
      ('2024-01-31', 'iso', 1, AT), ('2024-01-31T01:00:00+01:00', 'iso', 1, AT),
      ('2024-01-31 01:00:00 +0100', 'iso', 1, AT), ('2024-01-31 00:00:00 UTC', 'iso', 1, AT),
      ('2024-01-31T00:00:00.5Z', 'iso', 1000, AT * 1000 + 500),
      ('2024-01-31 00:00:00.000000001', 'iso', 10 ** 9, AT * 10 ** 9 + 1),
      ('2024-01-31T01:00:00+01:00[Europe/Paris]', 'iso', 1, AT),
      (f'{AT},5', 's', 1000, AT * 1000 + 500), ('2024/1/31', 'iso', 1, AT),
      (DAY, 'iso', 1, AT), (DAY.date(), 'iso', 1, AT),
      ('31.01.2024', 'd/m/y', 1, AT), ('31.1.24 13:30', 'd/m/y', 1, AT + 48600),
      ('31-JAN-24', 'words', 1, AT), ('Jan-31-2024 01:30', 'words', 1, AT + 5400),
      ('31/1/2024 13:30', 'd/m/y', 1, AT + 48600),
      ('01/31/2024', 'm/d/y', 1, AT), ('1/31/2024 1:30 PM', 'm/d/y', 1, AT + 48600),
      ('1/31/2024 12:00:00 AM', 'm/d/y', 1, AT), ('Jan 31, 2024', 'words', 1, AT),
      ('31 January 2024 01:30', 'words', 1, AT + 5400), ('31-Jan-2024', 'words', 1, AT),
      ('Wed, 31 Jan 2024 00:00:00 GMT', 'words', 1, AT), ('01 31, 2024', 'words', 1, AT),
      ('Wed Jan 31 01:00:00 +0100 2024', 'words', 1, AT),
      ('Wed Jan 31 00:00:00 2024', 'words', 1, AT), ('7', 'number', 0, 7),
      ('2024', 'number', 0, 2024), ('-2.5', 'number', 0, -25))
  def test_kinds(self, value, kind, per_second, want):
    clock, _ = decide([value] * 3)
    self.assertEqual((clock.kind, clock.per_second, clock.read(value)), (kind, per_second, want))

  @examples(60, 300)
  @hypothesis.given(st.lists(st.integers(0, 10 ** 9 - 1), min_size=2, max_size=8),
                    st.sampled_from(['s', 'ms', 'us', 'ns', 'iso', 'number']))
  def test_order_is_kept_to_a_nanosecond(self, nanos, kind):
    whole = {'ms': 10 ** 3, 'us': 10 ** 6, 'ns': 10 ** 9}.get(kind, 1)
    digits = 9 - (len(str(whole)) - 1)
    values = []
    for n in nanos:
      first, rest = divmod(n, 10 ** digits)
      number = (AT if kind != 'number' else 0) * whole + first
      text = f'{number}.{rest:0{digits}d}' if digits else str(number)
      values.append(f'{DAY:%Y-%m-%dT%H:%M:%S}.{n:09d}' if kind == 'iso' else text)
    clock, _ = decide(values)
    got = [clock.read(value) for value in values]
    self.assertEqual([a < b for a in got for b in got], [a < b for a in nanos for b in nanos])

  def test_floats_of_days_stay_apart(self):
    draw = random.Random(1)
    days = sorted(draw.uniform(17000, 17001) for _ in range(100))
    clock, _ = decide([repr(d) for d in days])
    got = [clock.read(repr(d)) for d in days]
    self.assertEqual((clock.kind, got), ('days', sorted(set(got))))

  def test_a_unit_is_told_from_all_values(self):
    mixed = [AT] * 50 + [AT * 1000] * 50
    with self.assertRaisesRegex(DataError, r"x\.csv: column 'when' holds times of several kinds"
                                r'.*50 seconds since 1970 \(line 2, 3, 4, ….*50 milliseconds '
                                r'since 1970 '
                                r'\(line 52, 53, 54, ….*--time-format'):
      decide(mixed)
    for stray in (AT * 1000, 0, -1, 20240131, '2024-01-31', '1970', 'soon'):
      clock, how = decide([AT] * 99 + [stray])
      self.assertEqual(clock.kind, 's')
      self.assertIn('99 of 100', how)
      with self.assertRaisesRegex(ValueError, 'seconds since 1970 are expected|neither a number'):
        clock.read(stray)
    for stray in (AT, '31.01.2024', '1970-01-01', '9999-12-31'):
      clock, _ = decide(['2024-01-31'] * 99 + [stray])
      with self.assertRaises(ValueError):
        clock.read(stray)
    clock, _ = decide([AT] * 99 + [0], 's')
    self.assertEqual(clock.read(0), 0)
    clock, _ = decide(['1850-01-01'] * 9)
    self.assertEqual(clock.read('1850-01-01'), -3786825600)

  def test_the_order_of_day_and_month_is_told_or_asked(self):
    clock, how = decide(['02/03/2024'] * 50 + ['13/03/2024', '02/03/2024'])
    self.assertEqual(clock.read('02/03/2024'), AT + 31 * 86400)
    self.assertIn("1 of 52 with 13 or more in the day's place, e.g. '13/03/2024' in line 52", how)
    clock, _ = decide(['02/03/2024'] * 50 + ['03/13/2024'])
    self.assertEqual(clock.read('02/03/2024'), AT + 3 * 86400)
    with self.assertRaisesRegex(ConfigError, r"'02/03/2024' \(line 2\).*--time-format=d/m/y"):
      decide(['02/03/2024', '03/02/2024'])
    with self.assertRaisesRegex(DataError, r'two orders: 1 with the day first \(lines 3\)'):
      decide(['03/13/2024', '13/03/2024'])
    for form, want in (('d/m/y', 31), ('m/d/y', 3), ('%d/%m/%Y', 31), ('%m/%d/%Y', 3)):
      clock, _ = decide(['02/03/2024'], form)
      self.assertEqual(clock.read('02/03/2024'), AT + want * 86400, form)
      with self.assertRaises(ValueError):
        clock.read('13/13/2024')

  def test_a_year_of_two_digits_behind_bars_is_one_where_no_year_can_stand_first(self):
    clock, _ = decide(['12/31/24', '01/02/25'])
    self.assertEqual([clock.read(text) for text in ('12/31/24', '01/02/25')],
                     [seconds(2024, 12, 31), seconds(2025, 1, 2)])
    with self.assertRaisesRegex(ConfigError, '--time-format=d/m/y'):
      decide(['01/02/25', '03/04/25'])

  @parameterized.parameters(
      ('20 de junio de 2024 12:11 hs.', 2024, 6, 20, 12, 11), ('3 août 2024', 2024, 8, 3),
      ('1 de março de 2024', 2024, 3, 1), ('7. Mai 2024 9:05 Uhr', 2024, 5, 7, 9, 5),
      ('12 gennaio 2024', 2024, 1, 12), ('5 września 2024 18:30', 2024, 9, 5, 18, 30),
      ('9 мая 2024', 2024, 5, 9), ('2 maart 2024', 2024, 3, 2), ('Jun-17-24', 2024, 6, 17))
  def test_months_have_names_in_many_languages(self, text, *when):
    clock, _ = decide([text] * 3)
    self.assertEqual(clock.read(text), seconds(*when))

  def test_numbers_of_orders_are_no_times(self):
    for numbers in (range(2_000_007_000_000_000, 2_000_007_000_000_040), range(1_700_000_000,
                                                                              1_700_000_040)):
      profile = times.ColumnProfile()
      for line, number in enumerate(numbers):
        profile.add(str(number), line)
      self.assertFalse(profile.like_times())

  def test_what_is_no_time_is_refused(self):
    for values in (['soon', 'later'], ['10:00', '11:00'], ['24/12/31', '25/01/01'],
                   ['24-12-31', '25-01-01']):
      with self.assertRaisesRegex(DataError, r'line 2, 3.*--time-format'):
        decide(values)
    with self.assertRaisesRegex(DataError, 'holds no times.*--order=file'):
      decide(['', None, float('nan')])
    for value in (None, '', 'x', True, 'inf', [], float('nan'), 2 ** 63, '1e99'):
      with self.assertRaises(ValueError):
        times.PLAIN.read(value)
    for form in ('fortnight', '%Q', 'S'):
      with self.assertRaisesRegex(ConfigError, '--time-format'):
        times.check_format(form)
    clock, _ = decide(['31.12.24'], '%d.%m.%y')
    self.assertEqual(clock.read('31.12.24'), 1735603200)

  def test_whole_numbers_of_days_are_not_guessed(self):
    self.assertEqual(decide(['19753', '19754'])[0].kind, 'number')
    self.assertEqual(decide(['19753', '19754'], column='order_day')[0].kind, 'days')
    self.assertEqual(decide(['19753'], 'days')[0].read('19753'), AT)

  def test_bounds(self):
    seconds, days = times.TimeScale('s', 1), times.TimeScale('ymd', 1)
    self.assertEqual(times.parse_bound('2024-01-31', 'start', seconds), AT)
    self.assertEqual(times.parse_bound('2024-01-31', 'end', seconds, closing=True), AT + 86399)
    self.assertEqual(times.parse_bound('2024-01-31 00:00:00', 'end', seconds, closing=True), AT)
    self.assertEqual(times.parse_bound('2024-01-31', 'end', times.TimeScale('s', 10 ** 9), True),
                     (AT + 86400) * 10 ** 9 - 1)
    self.assertEqual(times.parse_bound('20240131', 'end', days, closing=True), AT + 86399)
    self.assertEqual(times.parse_bound(str(AT), 'end', times.TimeScale('s', 1000, 1000)), AT * 1000)
    self.assertEqual(times.parse_bound('2.5', 'end', times.TimeScale('number', 0, 10)), 25)
    self.assertEqual(times.parse_bound(str(AT), 'end', times.TimeScale('iso', 1)), AT)
    for text, scale in ((str(AT * 1000), seconds), ('2024', seconds), (str(AT), days),
                        ('2024-01-31', times.TimeScale()), ('May', seconds)):
      with self.assertRaisesRegex(ConfigError, 'end'):
        times.parse_bound(text, 'end', scale)

  def test_ends_of_unknown_numbers(self):
    self.assertEqual(times.find_scale(AT, AT + 1), times.TimeScale('s', 1))
    self.assertEqual(times.find_scale(AT, AT * 1000), times.TimeScale())
    self.assertEqual(times.find_scale(None, None), times.NO_TIMES)
    with self.assertRaisesRegex(ConfigError, 'the rows have no times'):
      times.parse_bound('5', 'start', times.NO_TIMES)
    self.assertEqual(times.TimeScale('s', 1000, 1000).shown(AT * 1000 + 1), '2024-01-31 00:00:00')


if __name__ == '__main__':
  absltest.main()

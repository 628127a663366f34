"""UniRec's pickled tables and RecLM's files; tables are read without pandas, and nothing is run."""
import base64
import importlib.util
import json
import pathlib
import pickle
import random
import types
import zlib

import numpy as np
from absl.testing import absltest, parameterized

from recjax.data import loading
from recjax.data.formats import reclm, safe_pickle, unirec
from recjax.data.prepare import cli
from recjax.data.sample_shop import simulator
from recjax.errors import ConfigError, DataError
from tests.data import systems_test

SHARED = pathlib.Path(__file__).parents[2].parent / 'shared' / 'data' / 'formats'

# Two users: [2, 1] and [3, 1], then 3 and 2 in the test. user_history.pkl, test.pkl.
TABLES = {
    'pandas 1.5.3, protocol 4': (
        'c-n1J-)j>=5YAl^o2pogs1?KqpW=gg67)e3toWnB6Z+y)S@!O>xubh~=k6XgU_l=mTbQ?we{Y@Hq%_g&!R*}bH#6'
        'Vtd_Q}CK6E=_!FD4}F5M`rtr{I#St*3gchbxE!N0&~zwiWy&=b|fB0O1!m&Pk=q;{i98aYwcA>4ke>+I<B{GY<%!'
        '6HKFGIiG>2wS2xO_?2OB~p%I@O{%(&2*l<YPBz=wQ@>Xg;iN?oVRV}8Q2d%gbm6aAQw39oZ@bj;&0r?;W(l%o?)>'
        'C{oGF*?gZlU6`r5X@4FDa#w1DhE@=fb?s!bkckf2?m+8cd9qAYbX<HH<L%jP=mzfF$xeBKn$83vR#hqfCX%zQXN$'
        'f!UWu^3we@egM(g!&FKS6vN!pj%e;l<;1ya&uTTJT+;=Ov-KODM(2r+m5G#texF?5qwtSKpNzrP7f+ZVIE0#V0<a'
        'S13M0|H=<S$w@r8p1^bN5jI+<tSEDYLFrW`oce}L1$u@hm$Wl}%sqItj)IkD!W{N_U#eStO=vP+T2FI<p7V7>{jj'
        '6Ri9$}rhLlWtAdxfAE5VCOc^QZw(14})B;^x?8{$yQNpK%Zt?Oea^0uMzORt2MsUjVpxi%gB1%CHM)c',
        'c-n1JO=}cE5S^LqnkZrnK@$jw#{^-#h~%IIToIDN6}*S0XQr~#q^Ec258{FWJtStKZ>jt!f0b7EB$|ZnLs2zTAMd'
        '@YAA_skSrVUL>$s}9$*ZY`{7CZ_&_DdhE&mk#OWgU1r?~A0tet4|FK(v`WkD-0P2O_FC!h`b#~<XhI{w_pRPLW&S'
        '1>6`^S=cBDs!q6)v*LthMJK4Ou4q3_1#-1t>9Yo8FghEs;M$oyUK>dVN687Oub{uB^JpUj?xl;;aA))(jqIeb8J@'
        'qu(q=<F!7n##rZ}5f61rsa6BF#{Gk_3kytF}qnBx~OmeMIvUD#-O7knF69i8YkD-yGf(U?SrlEb21$%~vB;4j*#c'
        'KElCNH@mogXm;Cu~1_qw;3Q4{!XacuiZt=1H>_m^JJFcu}zFvoCkJe80zKFK`Ltmz@F4L`_l&3vKWq5E!Vi-myEU'
        '4$UjSwFo6?3|dqKbYI!GZ*GBWUN6SAH6J}q7U<Qy?<YYpbW5}mI<r9V=HyrlmPf{iBq_I+j_DNr19l|&B)S`1%IS'
        '$=wd+W5Zh=W&0$tLDab^A&T5}MF',
    ),
    'pandas 2.3.3, protocol 2': (
        'c-nPS`BT$C7)`?+FFaB4KCpOHP*hYDMMNP|WWC~1*G;mJ3~Abz-3&5gXY>bK_^Wj{O?B|t%<PeU-}~O%`M$5FS7)'
        ')$M9HfqytI<ADz|2tWOLaL#^^T`8Ze7aw_zBxx|*PCTSOR3p2RE?r7DZrDo=zp6V<%6#rDZUcLz?R&=tS&7ER-N='
        '&ePZx;nr@j~A!a`bLRn#MLyCAxjdrVbO$pwOGg`^`wQ~Hq26_*)95P<2(9273OnKSUlDn3j<C;Np@j5y=sk^4C8U'
        '^XksV9t`>F^>?zs>^_fi!=9IqNsH@1mj;SKTN$lI&Y+*mafuh}&u}$G%xm;fOp++{@hQuLvD;RJF)vZS8Vdg7_0+'
        'sJD!4Zk0u1BexhRRe-sU@P&Q<;WsLu+W^7{PJdY~cjK$)G3b4Kh=w0;Tjc!I@u5&jxLAOOrUK#hoV@>4^J+3){s_'
        'OBCI$3Py_^!i$>l62WCnXnx0)oGzR|Nz+{=7*lk?-!8{9m;JdroetNuyXyoK5;xpVhMPLWErQ8B!|h<K6WG-WyrT'
        'o}5==?lbGgKQHyGAv{Seax5A;JkB$#R9Q3bQbKkCirpSdWxOmK_Fe4WngKNcSUAC@EL8hFyKV_y|Go^~Y9Ysm`)b'
        '}so@Frpr9vFP+EXexL@Lm%bLLMVBa3JxqO+0WgKELM$z<#O5tA$Sq|TSvm;Rc;YI=W1Ry@TwRrmz^HPAtXyAUfV{'
        '-C}gdUH@2A{cpZ*iQ2cKR-ti{h6MSg5qbgTaoPpd?*1Y(booSUzmf55ge9Ce#DH8$KfSWZ0U5VJLfY*TU4C(7As;'
        'vv^r*&1DOmZ4Amq!A8Q>1R`Cp+FylK',
        'c-nPRTT|396z-Or#2YG#cM)&JOBJuED2j+e$8{!8ec8#RZJ-_6?tV==$c#Iq54#J$TGQ+T12de5Bq!%PCttpE{@7'
        'uQ=Mk4~*ery*UhqtiWv=*&Il-F!i&`7D;}2Vw#j=e8Lx(bwT!|v*sdO`*^9@l*vXnN%%^!V_V0aJC(j<@vc*4rOm'
        '4utAU_q5YFcRiv*4lQNDV&w5N_bK5ZNdr>Hgl<pGE@YkeHhV2O%!9E)xn8Sr$r)^MC8?hVBD{1$^nQ!s`r$uB%i~'
        '{E>2OL?%@o@S;wn+wr6)SF(?_S?Uv3w=i53XnaBCvogOYwOgi3>skVTN^?H5npEk32mcpfAHy-z=b+kfMW)JqEBR'
        '-~L{r+W&D+*VGkg=dl^e1!1h)k1EzkJQJG^1J%*C}pzb`LixZgnu-z-{M<?2-5-q#JN42+PG5Tdi&gW{!sq5O><R'
        '+iz#2`;2?>XlxX`A8T12P&h`G4rb%N4nODdu+rfX#p694e&fku9TpYbV7Gy%jz6a3r4$8AB0Mu*qC{4Cb3);HV4l'
        'wPbm2w4?BXTGt9T~XtX@0uKAATanR$x012XU8$x7u3>%jI^eP5}%K=DE0V-TC7ixi(k7oRDX`h%+*i!c88;L~Qzv'
        '21*n3B`>PUmIBQNAwj}s*w2B#&<J1Y(3>0602>j`BPOmO`BViMP*AjjVr-Y9*9)J+mU79{s*&H1nv',
    ),
    'pandas 2.3.3, protocol 5': (
        'c-n1K!EV$r5Zz>VX`vMqkQRFB4Y9q13ql-_kSMBvh()Tzv9g@RySAD*!FE(CQ3(!RT4`<!{aqM)cWH|1gFQ*+y?H'
        'Z!`9A#3`n|B=e#3RaZIahUBvZpHfpGgRcYHs@zi{^lp5hn=teP2woo>3)P8iKgn^au$nJ^Y%^G#XjM;{l@1c%WQ!'
        'Ah0cD+t0p*6K#(N2Oqy$N1!jx~-a%gavwvg;6=e2Ai6?%G&8PP>wIR7UFx+@{E@!!Y~lfS-6wN%ZFIK#EbKvc!1-'
        'y578@}OeP=x&<b1HbC{)38qX1;J#>@?>shNxr!;9C+EV47ChbvD<XO_#?{Wi1U9DA12yP6g+MCRXyw=v4Hg|-TTd'
        '+nW2p>Ju8SX_HE)+$J+VTO!pRVcr_Mgtzr1Rns$MWv@a=p{GA3=bt=T~q!x}nMV4CS_OuuIYZNAcn+K~TEf@yfa_'
        '&ymW*<Ld?}#8+XHj9aqJ9j3)Gd+*=*uJ>WMii3d)G8M`v@~NMI++FqWt3LCc!CGsDVXB}TP)=0LiZ4M5479i6q@8'
        '>5?_m2T35M&L*Kpv^PF?wVLbvF+aWr`tSXVdHj}HU|QQ#DQBZre^$oyXC>PKLea6AY<Br|a5$l|96x7f7gvk*SwW'
        'mz9vR<sRSg*(AYo(b~zxoxxLFQlVO1O',
        'c-mc3OKTKC5T2Q2T^~WC;_D(_#0|onJp=+q1RY$#duV!QdUl%h^bGwV1`^Q2#sunSnLp!?OR9S}noS+5tGnx~s_&'
        'zIjQ;%1l4$U7;JW5EuX-c$#_&!c-1)#A{}|)nxb+i{aRTeCn;C?c*VCnT!f38+-f_)m!dQfj_o}b<zbx(qho?&fQ'
        '?j)GAqWqc*MqF~m0)GSgyhHCcf(=MVtI;%krl!{)|kF4ebdB}lk-=L;gfWEF3BWoH|_|dSdh-z9S(sGWbz%Jo&Lg'
        'aI4Ra3-Nxy3`uTz^x*~B{7Fm&<Af&tKC=G6xUMeRw%{;P7R-sIhP*NJI6j|_d+#`{muc}jv@51IKx1{M^ro{pK6y'
        '6BlzJ}3N9M!E!ankBK{mxTUZVadKH<%GsudOq_asj^yW9k$?!!UE)O-o#mN{eic?IXy(t`I%CL3D?Ro`s>u-U`EH'
        'jWCu@bRiP-2kSa4z|@~mh4xLmMRT@q+xwIA&1BX7sog$_tzQJy+MNYb1V`IL^3!4knpaE4I^lTay+^`w=V*P75pJ'
        '<Y@mUO?ai#hL%W6N6?A!^acqwRiPOUHVOW;ok5&',
    ),
}
MAP = {'user2id': {'[PAD]': 0, 'u': 1, 'v': 2}, 'id2user': ['[PAD]', 'u', 'v'],
       'item2id': {'[PAD]': 0, 'a': 1, 'b': 2, 'c': 3}, 'id2item': ['[PAD]', 'a', 'b', 'c']}


def unpacked(text):
  return zlib.decompress(base64.b85decode(text))


class UnirecTest(parameterized.TestCase):

  def folder(self, tables='pandas 1.5.3, protocol 4'):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for stem, text in zip(('user_history', 'test'), TABLES[tables]):
      (folder / f'{stem}.pkl').write_bytes(unpacked(text))
    (folder / 'map.pkl').write_bytes(pickle.dumps(MAP))
    return folder

  @parameterized.parameters(*TABLES)
  def test_tables_of_pandas_are_read_without_it(self, tables):
    folder = self.folder(tables)
    self.assertEqual(unirec.read(folder), (('a', 'b', 'c'), ['u', 'v'], [[2, 1, 3], [3, 1, 2]]))
    test = safe_pickle.read_table(folder / 'test.pkl')
    self.assertEqual({k: v.tolist() for k, v in test.items()}, {'user_id': [1, 2],
                                                                'item_id': [3, 2]})
    self.assertTrue(test['item_id'].flags.writeable)

  def test_as_a_source(self):
    folder = self.folder()
    with self.assertRaisesRegex(ConfigError, '--allow-pickle'):
      unirec.source(folder)
    goods = folder / 'goods.csv'
    goods.write_text('item_id,title\na,A\nb,B\nc,C\n')
    args = types.SimpleNamespace(source='unirec', folder=folder, allow_pickle=True, items='')
    source = cli.open_source(args)
    self.assertEqual([(e[0], e[1]) for _, _, e, _ in source.interactions],
                     [('u', 'b'), ('u', 'a'), ('u', 'c'), ('v', 'c'), ('v', 'a'), ('v', 'b')])
    self.assertEqual([row for _, _, row, _ in source.items], [('a', {}), ('b', {}), ('c', {})])
    source = unirec.source(folder, True, goods)
    self.assertEqual(next(iter(source.items))[2], ('a', {'title': 'A'}))

  def test_what_does_not_fit_is_named(self):
    for change, why in ((dict(id2item=['[PAD]', 'a', 'b']), 'row 2: item 3 is outside 1..2'),
                        (dict(id2user=['[PAD]', 'u']), 'row 2: user 2 is outside 1..1'),
                        (dict(id2user=['[PAD]', 'u', 'u']), 'each once'),
                        (dict(id2item=None), 'must be a list of ids')):
      folder = self.folder()
      (folder / 'map.pkl').write_bytes(pickle.dumps(MAP | change))
      with self.assertRaisesRegex(DataError, why):
        unirec.read(folder)
    folder = self.folder()
    (folder / 'user_history.pkl').write_bytes((folder / 'test.pkl').read_bytes())
    with self.assertRaisesRegex(DataError, 'no column item_seq; it has user_id, item_id'):
      unirec.read(folder)
    (folder / 'test.pkl').unlink()
    with self.assertRaisesRegex(DataError, 'test.pkl cannot be read|user_history'):
      unirec.read(folder)

  def test_malicious_pickles_are_refused_as_tables_too(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'x.pkl'
    for data in systems_test.malicious():
      path.write_bytes(data)
      with self.assertRaisesRegex(DataError, r'x\.pkl'):
        safe_pickle.read_table(path)
    for name in ('builtins eval', 'builtins getattr', 'os system', 'numpy load', 'pandas eval',
                 'pandas.io.pickle read_pickle', 'numpy.core.multiarray fromfile', 'posix system',
                 'builtins __import__', 'subprocess Popen', 'functools partial'):
      module, _, call = name.partition(' ')
      path.write_bytes(f'c{module}\n{call}\n(S"touch {path}.ran"\ntR.'.encode())
      with self.assertRaisesRegex(DataError, f'it names {module}.{call}'):
        safe_pickle.read_table(path)
    # Names that are admitted are stand-ins: none reserves memory, or runs.
    for text in ('cnumpy\nndarray\n(I1099511627776\ntR.',
                 'cbuiltins\nbytearray\n(I99999999999\ntR.',
                 'cpandas.core.frame\nDataFrame\n(tR(d(S"__class__"\nI1\nsS"x"\ntb.'):
      path.write_bytes(text.encode())
      with self.assertRaises(DataError):
        safe_pickle.read_table(path)
    self.assertEqual([p.name for p in path.parent.iterdir()], ['x.pkl'])
    self.assertEmpty(systems_test.RAN)

  def test_damaged_tables_are_read_or_named(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'x.pkl'
    for tables in TABLES.values():
      for text in tables:
        good = unpacked(text)
        for seed in range(300):
          draw = random.Random(seed)
          data = bytearray(good)
          for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] = draw.randrange(256)
          path.write_bytes(data[:draw.choice([len(data), len(data), draw.randrange(len(data))])])
          try:
            self.assertIsInstance(safe_pickle.read_table(path), dict)
          except DataError as error:
            self.assertIn('x.pkl', str(error))

  @absltest.skipIf(importlib.util.find_spec('pandas') is None, 'pandas is not installed')
  def test_texts_beside_numbers_are_those_of_pandas(self):
    import pandas
    texts, path = ['', 'Ä', 'long text', 'x', 'y'], pathlib.Path(self.create_tempdir()) / 'x.pkl'
    for some in (slice(None), slice(1, 4)):
      table = pandas.DataFrame({'n': range(5), 'text': texts, 'rows': [np.arange(i) for i in range(
          5)]})[some]
      for protocol in (2, 4, 5):
        path.write_bytes(pickle.dumps(table, protocol))
        found = safe_pickle.read_table(path)
        self.assertEqual(list(found), ['n', 'text', 'rows'])
        self.assertEqual(found['n'].tolist(), table['n'].tolist())
        self.assertEqual(found['text'], texts[some])
        self.assertEqual([r.tolist() for r in found['rows']], [r.tolist() for r in table['rows']])
    if int(pandas.__version__.partition('.')[0]) >= 3:
      path.write_bytes(pickle.dumps(pandas.DataFrame({'text': ['a', None, 'b']})))
      self.assertEqual(safe_pickle.read_table(path)['text'], ['a', None, 'b'])

  def test_round_trip_through_pandas(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    shop = simulator.make_shop(0)
    if importlib.util.find_spec('pandas') is None:
      with self.assertRaisesRegex(ConfigError, 'pip install pandas'):
        unirec.write(shop, folder, 'shop')
      self.skipTest('pandas is not installed')
    unirec.write(shop, folder, 'shop')
    items, users, rows = unirec.read(folder)
    data = shop.interactions
    kept = np.flatnonzero(data.lengths() >= 3)
    self.assertEqual(items, shop.catalog.ids)
    self.assertEqual(users, [data.users[u] for u in kept])
    self.assertEqual(rows, [data.history(u).tolist() for u in kept])
    train = safe_pickle.read_table(folder / 'train.pkl')
    self.assertLen(train['item_id'], sum(len(row) - 2 for row in rows))
    valid = safe_pickle.read_table(folder / 'valid.pkl')
    self.assertEqual(valid['item_id'].tolist(), [row[-2] for row in rows])
    self.assertIn(f'n_items: {len(items) + 1}', (folder / 'shop.yaml').read_text())


class ReclmTest(parameterized.TestCase):

  def folder(self, sequential, metas, category=None):
    folder = pathlib.Path(self.create_tempdir().full_path)
    for stem, value in (('sequential', sequential), ('metas', metas), ('category', category)):
      if value is not None:
        (folder / f'{stem}.jsonl').write_text(json.dumps(value, indent=2))
    return folder

  def test_a_folder_is_a_data_set(self):
    data = loading.load_data(self.folder({'u': ['b', 'a'], 'v': []}, {
        'a': {'title': 'A', 'title_t': 'A (1)', 'category': ['R', 'C']}, 'b': {'title': 'B'}}))
    self.assertEqual(data.catalog.ids, ('a', 'b'))
    self.assertEqual(data.catalog.columns, {'title': ['A (1)', 'B'],
                                            'categories': [['R', 'C'], None]})
    self.assertEqual(data.interactions.items.tolist(), [2, 1])
    self.assertEqual((data.interactions.users, data.notes), (('u', 'v'), {'source': 'reclm'}))

  def test_paths_come_from_the_categories_where_metas_lack_them(self):
    category = {'C': ['a', 'b'], 'C, D': ['a'], 'E': ['a']}
    folder = self.folder({'u': ['a']}, {'a': {'title': 'A'}, 'b': {}}, category)
    columns = loading.load_data(folder).catalog.columns
    self.assertEqual(columns['categories'], [['all', 'C', 'D'], ['all', 'C']])
    again = pathlib.Path(self.create_tempdir().full_path)
    reclm.write(loading.load_data(folder), again)
    self.assertEqual(json.loads((again / 'category.jsonl').read_text()),
                     {'C': ['a', 'b'], 'C, D': ['a']})

  @parameterized.parameters(
      (['u'], {'a': {}}, None, 'one object'), ({'u': 'a'}, {'a': {}}, None, 'needs a list'),
      ({'u': ['x']}, {'a': {}}, None, "item 'x', which is not in metas"),
      ({'u': [['a']]}, {'a': {}}, None, 'not in metas'),
      ({'u': ['a']}, {'a': 3}, None, 'no columns'),
      ({'u': ['a']}, {'a': {}}, {'C': ['x']}, "category 'C' holds 'x'"),
      ({}, {'a': {}}, None, 'users'),
      ({'u': ['a']}, {}, None, 'items'))
  def test_what_does_not_fit_is_named(self, sequential, metas, category, why):
    with self.assertRaisesRegex(DataError, why):
      loading.load_data(self.folder(sequential, metas, category))

  def test_the_published_layout(self):
    if not SHARED.is_dir():
      self.skipTest('needs ../shared/data/formats')
    data = loading.load_data(SHARED / 'reclm-cgen')
    self.assertEqual((len(data.interactions), len(data.catalog)), (189, 1884))
    want = json.loads((SHARED / 'reclm-cgen' / 'category.jsonl').read_text())
    got = reclm.items_by_category(data.catalog)
    self.assertEqual(set(got), set(want))
    self.assertFalse([k for k in got if sorted(got[k]) != sorted(want[k])])
    again = pathlib.Path(self.create_tempdir().full_path)
    reclm.write(data, again)
    self.assertEqual(loading.load_data(again).fingerprint, data.fingerprint)


if __name__ == '__main__':
  absltest.main()

// The shop's page. Whatever comes from a catalogue or a model is put in as text, never as markup.
'use strict';

const at = id => document.getElementById(id);
const PAGE = 24;
let model = '', offset = 0, stream = null, turns = [], round = 0, listing = 0, viewed = null;
let fresh = '', bought = [];

function make(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

async function ask(path, values, how) {
  const query = new URLSearchParams({model, ...values});
  const answer = await fetch(`${path}?${query}`, how);
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.detail || `the server said ${answer.status}`);
  }
  return answer.json();
}

function trouble(error) {
  at('trouble').hidden = !error;
  if (error) at('trouble').textContent = `Something went wrong: ${error.message}`;
}

const guarded = task => async (...given) => {
  try {
    await task(...given);
    trouble(null);
  } catch (error) {
    trouble(error);
  }
};

function button(text, label, press, name) {
  const node = make('button', text, name);
  node.type = 'button';
  if (label) node.setAttribute('aria-label', label);
  node.addEventListener('click', press);
  return node;
}

function opener(item) {
  const node = button(item.title || item.id, '', guarded(() => show(item.id)), 'open');
  node.dir = 'auto';
  return node;
}

const leaf = item => (item.categories || []).at(-1) || '';

function card(item) {
  const node = make('li', undefined, 'card');
  const kind = make('p', leaf(item) || item.brand || '\u00a0', 'kind');
  kind.dir = 'auto';
  node.append(kind, opener(item));
  if (item.why) node.append(reasons(item.why));
  const foot = make('div', undefined, 'foot');
  const price = typeof item.price === 'number' ? item.price.toFixed(2) : item.price || '';
  foot.append(make('span', price, 'price'), buyer(item));
  node.append(foot);
  return node;
}

function buyer(item) {
  return button('Buy', `Buy ${(item.title || item.id).slice(0, 100)}`, guarded(() => buy(item)));
}

function reasons(why) {
  const list = make('ul', undefined, 'why');
  const line = (text, strong) => {
    const row = make('li', text);
    row.append(make('b', strong));
    row.dir = 'auto';
    list.append(row);
  };
  if (why.interests.length) line('Fits ', why.interests.slice(0, 3).join(', '));
  if (why.tags.length) line('Shares ', why.tags.slice(0, 3).join(', '));
  for (const other of why.neighbours.slice(0, 1)) {
    line(`${other.people} people also bought `, other.title || other.id);
  }
  return list;
}

async function buy(item) {
  tell(await ask('/shop/history', {}, {
    method: 'POST', headers: {'Content-Type': 'application/json'},
    body: JSON.stringify({item: item.id, model})}));
  at('said').textContent = `Bought: ${(item.title || item.id).slice(0, 100)}`;
  await recommend();
}

async function forget(position) {
  tell(await ask('/shop/history', position === null ? {} : {position}, {method: 'DELETE'}));
  at('said').textContent = position === null ? 'All deleted' : 'Deleted';
  (at('history').querySelector('button') || at('you')).focus();
  await recommend();
}

function tell(state) {
  const rows = state.history.map(item => {
    const row = make('li');
    row.append(opener(item), button('Delete', `Delete ${(item.title || item.id).slice(0, 100)}`,
                                    guarded(() => forget(item.position)), 'quiet'));
    return row;
  });
  bought = state.history.map(item => item.id);
  at('history').replaceChildren(...rows.reverse());
  at('count').textContent = state.history.length;
  at('empty').hidden = state.history.length > 0;
  at('clear').hidden = state.history.length === 0;
  if (!state.history.length) interests({interests: [], source: '', note: ''});
}

function interests(found) {
  at('chips').replaceChildren(...found.interests.map(text => {
    const chip = make('li');
    chip.append(button(text, `Search for ${text}`, guarded(() => {
      at('query').value = text;
      return list(true);
    })));
    chip.dir = 'auto';
    return chip;
  }));
  const by = {local: 'Found here, in the words of what you bought.',
              model: 'Written by a language model from what you bought.'}[found.source];
  at('source').textContent = !found.interests.length ? 'None yet.'
    : found.note ? `${by} (The language model did not answer.)` : by;
}

async function recommend() {
  const mine = ++round;
  at('recommended').classList.add('waiting');
  try {
    const found = await ask('/shop/recommend', {k: 12});
    if (mine !== round) return;
    const own = found.source === 'model';
    at('foryou-title').textContent = own ? 'For you' : 'Bought most';
    at('foryou-note').textContent = own ? 'From what you bought, best first.'
      : 'Buy something, and this list becomes yours.';
    at('recommended').replaceChildren(...found.items.map(card));
  } finally {
    if (mine === round) at('recommended').classList.remove('waiting');
  }
}

async function list(anew) {
  const mine = ++listing;
  if (anew) offset = 0;
  const q = at('query').value.trim(), category = at('category').value;
  const found = await ask('/shop/items', {q, category, offset, limit: PAGE});
  if (mine !== listing) return;
  const rows = found.items.map(card);
  if (anew) at('items').replaceChildren(...rows);
  else {
    at('items').append(...rows);
    rows[0]?.querySelector('button').focus();
  }
  offset += rows.length;
  at('browse-title').textContent = q ? 'Found' : 'All items';
  at('total').textContent = found.total === 0 ? 'No item has all of these words; try fewer.'
    : `${found.total.toLocaleString()} items, bought most first`;
  at('more').hidden = offset >= found.total;
}

async function show(id) {
  const item = await ask('/shop/item', {id});
  viewed = item;
  at('one-kind').textContent = (item.categories || []).join(' › ');
  at('one-title').textContent = item.title || item.id;
  at('one-brand').textContent = item.brand || '';
  at('one-text').textContent = item.description || '';
  at('one-tags').replaceChildren(...item.tags.map(tag => make('li', tag)));
  at('one-buy').hidden = !item.sold;
  if (!at('one').open) at('one').showModal();
}

function listen() {
  if (stream) stream.close();
  stream = new EventSource(`/shop/events?${new URLSearchParams({model})}`);
  stream.addEventListener('interests', event => interests(JSON.parse(event.data)));
}

async function begin(name) {
  model = name;
  const state = await ask('/shop/state', {});
  model = state.model;
  const several = state.models.length > 1;
  at('method').hidden = !several;
  at('model').replaceChildren(...state.models.map(m => {
    const option = make('option', m.method === m.name ? m.name : `${m.name} (${m.method})`);
    option.value = m.name;
    option.selected = m.name === model;
    return option;
  }));
  const all = make('option', 'all');
  all.value = '';
  at('category').replaceChildren(all, ...state.categories.map(c => {
    const option = make('option', `${c.name.slice(0, 60)} (${c.items})`);
    option.value = c.name;
    return option;
  }));
  const mine = state.models.find(m => m.name === model);
  const talks = mine.converses ? mine : state.models.find(m => m.converses);
  fresh = talks ? talks.name : '';
  at('chat').hidden = at('tochat').hidden = !talks;
  tell(state);
  if (state.interests.length) interests(state);
  listen();
  await Promise.all([list(true), recommend()]);
}

function turn(role, text) {
  const node = make('div', text, `turn ${role}`);
  node.dir = 'auto';
  at('log').append(node);
  at('log').scrollTop = at('log').scrollHeight;
  return node;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, '');
      if (data !== '[DONE]') yield JSON.parse(data);
    }
  }
}

async function say(text) {
  turns.push({role: 'user', content: text});
  turn('user', text);
  at('send').disabled = true;
  at('anew').hidden = false;
  const node = turn('assistant', '…');
  try {
    const answer = await fetch('/v1/chat/completions', {
      method: 'POST', headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({model: fresh, messages: turns.slice(-40), stream: true,
        history: bought, min_items: 1, max_items: 5})});
    if (!answer.ok) throw new Error((await answer.json()).detail);
    let text = '', items = [];
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      text += event.choices[0]?.delta.content || '';
      items = event.items || items;
      node.textContent = text;
    }
    turns.push({role: 'assistant', content: text});
    if (items.length) node.append(offered(items));
  } catch (error) {
    turns.pop();
    node.classList.add('failed');
    node.textContent = error.message;
  } finally {
    at('send').disabled = false;
    at('log').scrollTop = at('log').scrollHeight;
  }
}

function offered(items) {
  const list = make('ul');
  for (const item of items) {
    const row = make('li');
    row.append(opener(item), buyer(item));
    list.append(row);
  }
  return list;
}

let typing = 0;
at('search').addEventListener('submit', event => {
  event.preventDefault();
  guarded(() => list(true))();
});
at('query').addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(guarded(() => list(true)), 200);
});
at('category').addEventListener('change', guarded(() => list(true)));
at('more').addEventListener('click', guarded(() => list(false)));
at('clear').addEventListener('click', guarded(() => forget(null)));
at('model').addEventListener('change', guarded(() => begin(at('model').value)));
at('one-buy').addEventListener('click', guarded(async () => {
  at('one').close();
  await buy(viewed);
}));
at('anew').addEventListener('click', () => {
  turns = [];
  at('log').replaceChildren();
  at('anew').hidden = true;
  at('words').focus();
});
at('words').addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at('say').requestSubmit();
  }
});
at('say').addEventListener('submit', event => {
  event.preventDefault();
  const text = at('words').value.trim();
  if (!text || at('send').disabled) return;
  at('words').value = '';
  say(text);
});
guarded(begin)('');

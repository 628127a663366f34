// The shop's page. Whatever comes from a catalog or a model is put in as text, never as markup.
'use strict';

const byId = id => document.getElementById(id);
const PAGE_SIZE = 24;
let model = '', offset = 0, eventSource = null, turns = [], openedItem = null;
let recommendRound = 0, itemsRound = 0, itemRound = 0;  // answers to older requests are left out
let chatModel = '', user = '', boughtIds = [];

function createNode(tag, text, name) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
}

async function fetchJson(path, values, how) {
  const query = new URLSearchParams({model, ...values});
  const answer = await fetch(`${path}?${query}`, how);
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.detail || `the server said ${answer.status}`);
  }
  return answer.json();
}

const post = (path, body) => fetchJson(path, {}, {
  method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)});

// What this visitor did with an item; an item of a recommendation carries its answer's id.
const tell = (type, item) => post('/v1/events', {
  user, type, item: item.id, request_id: item.request_id || ''});

function showError(error) {
  byId('trouble').hidden = !error;
  if (error) byId('trouble').textContent = `Something went wrong: ${error.message}`;
}

let tasksBegun = 0, failedTask = 0;
const withErrorMessage = task => async (...given) => {
  const mine = ++tasksBegun;
  try {
    await task(...given);
    if (mine > failedTask) showError(null);  // what went wrong since stays to be read
  } catch (error) {
    failedTask = tasksBegun;
    showError(error);
  }
};

function button(text, label, press, name) {
  const node = createNode('button', text, name);
  node.type = 'button';
  if (label) node.setAttribute('aria-label', label);
  node.addEventListener('click', press);
  return node;
}

function titleButton(item) {
  const node = button(item.title || item.id, '', withErrorMessage(() => openItem(item)), 'open');
  node.dir = 'auto';
  return node;
}

const leafCategory = item => (item.categories || []).at(-1) || '';

const priceOf = item => typeof item.price === 'number' ? item.price.toFixed(2) : item.price || '';

function card(item) {
  const node = createNode('li', undefined, 'card');
  const kind = createNode('p', leafCategory(item) || item.brand || '\u00a0', 'kind');
  kind.dir = 'auto';
  node.append(kind, titleButton(item));
  if (item.why) node.append(reasonList(item.why));
  const foot = createNode('div', undefined, 'foot');
  foot.append(createNode('span', priceOf(item), 'price'), buyButton(item));
  node.append(foot);
  return node;
}

function buyButton(item) {
  return button('Buy', `Buy ${(item.title || item.id).slice(0, 100)}`,
                withErrorMessage(() => buy(item)));
}

function reasonList(why) {
  const list = createNode('ul', undefined, 'why');
  const line = (text, strong) => {
    const row = createNode('li', text);
    row.append(createNode('b', strong));
    row.dir = 'auto';
    list.append(row);
  };
  if (why.interests.length) line('Fits ', why.interests.slice(0, 3).join(', '));
  if (why.tags.length) line('Shares ', why.tags.slice(0, 3).join(', '));
  for (const other of why.neighbors.slice(0, 1)) {
    line(`${other.people} people also bought `, other.title || other.id);
  }
  return list;
}

async function buy(item) {
  await tell('purchase', item);
  showHistory(await fetchJson('/shop/history', {}));
  byId('said').textContent = `Bought: ${(item.title || item.id).slice(0, 100)}`;
  await loadRecommendations();
}

async function forget(key) {
  showHistory(await fetchJson('/shop/history', {key}, {method: 'DELETE'}));
  byId('said').textContent = key ? 'Deleted' : 'All deleted';
  (byId('history').querySelector('button') || byId('you')).focus();
  await loadRecommendations();
}

function showHistory(state) {
  const rows = state.history.map(item => {
    const row = createNode('li');
    row.append(titleButton(item), button('Delete', `Delete ${(item.title || item.id).slice(0, 100)}`,
                                    withErrorMessage(() => forget(item.key)), 'quiet'));
    return row;
  });
  boughtIds = state.history.map(item => item.id);
  byId('history').replaceChildren(...rows.reverse());
  byId('count').textContent = state.bought;
  byId('empty').hidden = state.history.length > 0;
  byId('clear').hidden = state.history.length === 0;
  if (!state.history.length) showInterests({interests: [], source: '', note: ''});
}

function showInterests(found) {
  byId('chips').replaceChildren(...found.interests.map(text => {
    const chip = createNode('li');
    chip.append(button(text, `Search for ${text}`, withErrorMessage(() => {
      byId('query').value = text;
      return loadItems(true);
    })));
    chip.dir = 'auto';
    return chip;
  }));
  const by = {local: 'Found here, in the words of what you bought.',
              model: 'Written by a language model from what you bought.'}[found.source];
  byId('source').textContent = !found.interests.length ? 'None yet.'
    : found.note ? `${by} (The language model did not answer.)` : by;
}

async function loadRecommendations() {
  const mine = ++recommendRound;
  byId('recommended').classList.add('waiting');
  try {
    const found = await post('/v1/recommend', {user, model, k: 12, why: true});
    if (mine !== recommendRound) return;
    const own = found.source === 'model';
    byId('foryou-title').textContent = own ? 'For you' : 'Bought most';
    byId('foryou-note').textContent = own ? 'From what you bought, best first.'
      : 'Buy something, and this list becomes yours.';
    byId('recommended').replaceChildren(
      ...found.items.map(item => card({...item, request_id: found.request_id})));
  } finally {
    if (mine === recommendRound) byId('recommended').classList.remove('waiting');
  }
}

async function loadItems(anew) {
  const mine = ++itemsRound;
  if (anew) offset = 0;
  const q = byId('query').value.trim(), category = byId('category').value;
  const found = await fetchJson('/shop/items', {q, category, offset, limit: PAGE_SIZE});
  if (mine !== itemsRound) return;
  const rows = found.items.map(card);
  if (anew) byId('items').replaceChildren(...rows);
  else {
    byId('items').append(...rows);
    rows[0]?.querySelector('button').focus();
  }
  offset += rows.length;
  document.body.classList.toggle('searching', Boolean(q || category));  // what is found comes first
  byId('browse-title').textContent = q ? 'Found' : 'All items';
  const read = found.read_as ? `No item has “${q}”; shown: “${found.read_as}”. ` : '';
  byId('total').textContent = read + (found.total === 0 ? 'No item has all of these words; try fewer.'
    : `${found.total.toLocaleString()} ${found.total === 1 ? 'item' : 'items, bought most first'}`);
  byId('more').hidden = offset >= found.total;
}

async function openItem({id, request_id}) {
  const mine = ++itemRound;
  const item = await fetchJson('/shop/item', {id});
  if (mine !== itemRound) return;
  openedItem = {...item, request_id};
  byId('one-kind').textContent = (item.categories || []).join(' › ');
  byId('one-title').textContent = item.title || item.id;
  byId('one-brand').textContent = item.brand || '';
  byId('one-text').textContent = item.description || '';
  byId('one-tags').replaceChildren(...item.tags.map(tag => createNode('li', tag)));
  byId('one-price').textContent = priceOf(item);
  byId('one-buy').hidden = !item.sold;
  byId('one-beside').hidden = true;
  history.replaceState(null, '', `#${new URLSearchParams({item: id})}`);  // to be sent to others
  if (byId('one').open) byId('one-title').focus();  // what was pressed is gone
  else byId('one').showModal();
  byId('one').scrollTop = 0;
  if (request_id) await tell('click', openedItem);
  const beside = await post('/v1/recommend', {model, history: [id], k: 5});
  if (mine !== itemRound) return;
  byId('one-others').replaceChildren(...beside.items.map(other => {
    const row = createNode('li');
    row.append(titleButton(other), createNode('span', priceOf(other), 'price'));
    return row;
  }));
  byId('one-beside').hidden = !beside.items.length;
}

// An address that names an item opens it.
async function openNamedItem() {
  const id = new URLSearchParams(location.hash.slice(1)).get('item');
  if (id) await openItem({id});
}

function openEventStream() {
  if (eventSource) eventSource.close();
  eventSource = new EventSource(`/shop/events?${new URLSearchParams({model})}`);
  eventSource.addEventListener('interests', event => showInterests(JSON.parse(event.data)));
}

async function start(name) {
  model = name;
  const state = await fetchJson('/shop/state', {});
  model = state.model;
  user = state.user;
  const several = state.models.length > 1;
  byId('method').hidden = !several;
  byId('model').replaceChildren(...state.models.map(m => {
    const option = createNode('option', m.method === m.name ? m.name : `${m.name} (${m.method})`);
    option.value = m.name;
    option.selected = m.name === model;
    return option;
  }));
  const all = createNode('option', 'all');
  all.value = '';
  byId('category').replaceChildren(all, ...state.categories.map(c => {
    const option = createNode('option', `${c.name.slice(0, 60)} (${c.items})`);
    option.value = c.name;
    return option;
  }));
  const mine = state.models.find(m => m.name === model);
  const talks = mine.converses ? mine : state.models.find(m => m.converses);
  chatModel = talks ? talks.name : '';
  byId('chat').hidden = byId('tochat').hidden = !talks;
  showHistory(state);
  if (state.interests.length) showInterests(state);
  openEventStream();
  await Promise.all([loadItems(true), loadRecommendations()]);
}

function appendTurn(role, text) {
  const node = createNode('div', text, `turn ${role}`);
  node.dir = 'auto';
  byId('log').append(node);
  byId('log').scrollTop = byId('log').scrollHeight;
  return node;
}

async function* readEvents(answer) {
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

async function sendMessage(text) {
  turns.push({role: 'user', content: text});
  appendTurn('user', text);
  byId('send').disabled = true;
  byId('anew').hidden = false;
  const node = appendTurn('assistant', '…');
  try {
    const answer = await fetch('/v1/chat/completions', {
      method: 'POST', headers: {'Content-Type': 'application/json'},
      body: JSON.stringify({model: chatModel, messages: turns.slice(-40), stream: true,
        history: boughtIds, min_items: 1, max_items: 5})});
    if (!answer.ok) throw new Error((await answer.json()).detail);
    let text = '', items = [];
    for await (const event of readEvents(answer)) {
      if (event.error) throw new Error(event.error.message);
      text += event.choices[0]?.delta.content || '';
      items = event.items || items;
      node.textContent = text;
    }
    turns.push({role: 'assistant', content: text});
    if (items.length) node.append(itemList(items));
  } catch (error) {
    turns.pop();
    node.classList.add('failed');
    node.textContent = error.message;
  } finally {
    byId('send').disabled = false;
    byId('log').scrollTop = byId('log').scrollHeight;
  }
}

function itemList(items) {
  const list = createNode('ul');
  for (const item of items) {
    const row = createNode('li');
    row.append(titleButton(item), buyButton(item));
    list.append(row);
  }
  return list;
}

let typing = 0;
byId('search').addEventListener('submit', event => {
  event.preventDefault();
  withErrorMessage(() => loadItems(true))();
});
byId('query').addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(withErrorMessage(() => loadItems(true)), 200);
});
byId('category').addEventListener('change', withErrorMessage(() => loadItems(true)));
byId('more').addEventListener('click', withErrorMessage(() => loadItems(false)));
byId('clear').addEventListener('click', withErrorMessage(() => forget('')));
byId('model').addEventListener('change', withErrorMessage(() => start(byId('model').value)));
byId('one-buy').addEventListener('click', withErrorMessage(async () => {
  byId('one').close();
  await buy(openedItem);
}));
byId('anew').addEventListener('click', () => {
  turns = [];
  byId('log').replaceChildren();
  byId('anew').hidden = true;
  byId('words').focus();
});
byId('words').addEventListener('keydown', event => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId('say').requestSubmit();
  }
});
byId('say').addEventListener('submit', event => {
  event.preventDefault();
  const text = byId('words').value.trim();
  if (!text || byId('send').disabled) return;
  byId('words').value = '';
  sendMessage(text);
});
byId('one').addEventListener('close', () => history.replaceState(null, '', location.pathname));
window.addEventListener('hashchange', withErrorMessage(openNamedItem));
withErrorMessage(async () => {
  await start('');
  await openNamedItem();
})();

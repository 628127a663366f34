// Shows openapi.json, and lets people try it. No code of others, no network but this server.
'use strict';

function make(tag, text) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  return node;
}

const named = (spec, part) => part?.$ref ? spec.components.schemas[part.$ref.split('/').pop()] : part;

function kind(spec, part) {
  const found = named(spec, part) || {};
  if (found.anyOf) return found.anyOf.map(p => kind(spec, p)).join(' or ');
  if (found.type === 'array') return `list of ${kind(spec, found.items)}`;
  const bounds = [['minimum', 'from'], ['maximum', 'to']]
    .filter(([key]) => found[key] !== undefined).map(([key, word]) => `${word} ${found[key]}`);
  return [found.title && found.properties ? found.title : found.type || 'anything', ...bounds].join(' ');
}

function example(spec, part, level = 0) {
  const found = named(spec, part) || {};
  if (found.default !== undefined) return found.default;
  if (found.anyOf) return example(spec, found.anyOf[0], level);
  if (found.properties && level < 3) {
    return Object.fromEntries(Object.entries(found.properties)
      .filter(([key]) => (found.required || []).includes(key))
      .map(([key, value]) => [key, example(spec, value, level + 1)]));
  }
  if (found.type === 'array') return level < 3 ? [example(spec, found.items, level + 1)] : [];
  return {integer: found.minimum ?? 0, number: 0, boolean: false, string: ''}[found.type] ?? null;
}

function table(spec, rows) {
  const node = make('table'), head = make('tr');
  for (const text of ['name', 'type', 'default', 'meaning']) head.append(make('th', text));
  node.append(head);
  for (const [name, part, need, text] of rows) {
    const row = make('tr'), first = make('td');
    first.append(make('code', name));
    const set = part?.default === undefined ? need ? 'needed' : '' : JSON.stringify(part.default);
    row.append(first, make('td', kind(spec, part)), make('td', set), make('td', text || ''));
    node.append(row);
  }
  return node;
}

function tryout(path, method, body) {
  const form = make('form'), area = make('textarea', JSON.stringify(body, null, 2));
  area.setAttribute('aria-label', 'Body');
  const out = make('pre');
  out.hidden = true;
  if (body !== undefined) form.append(area);
  form.append(make('button', 'Send'), out);
  form.addEventListener('submit', async event => {
    event.preventDefault();
    const how = {method};
    if (body !== undefined) Object.assign(how, {
      body: area.value, headers: {'Content-Type': 'application/json'}});
    out.hidden = false;
    try {
      const answer = await fetch(path, how), text = await answer.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON */ }
      out.textContent = `${answer.status}\n${shown.slice(0, 50000)}`;
    } catch (error) {
      out.textContent = error.message;
    }
  });
  return form;
}

function route(spec, path, method, about) {
  const node = make('details'), head = make('summary'), inside = make('div');
  inside.className = 'body';
  head.append(make('b', method.toUpperCase()), make('code', path),
              make('span', (about.description || '').split('\n')[0]));
  const query = (about.parameters || []).map(
    p => [p.name, p.schema, p.required, p.description]);
  if (query.length) inside.append(make('p', 'In the address:'), table(spec, query));
  const schema = named(spec, about.requestBody?.content['application/json']?.schema);
  if (schema) {
    inside.append(make('p', 'In the body:'), table(spec, Object.entries(schema.properties).map(
      ([name, part]) => [name, part, (schema.required || []).includes(name), part.description])));
  }
  const streams = path.endsWith('/events');
  if (!streams) inside.append(tryout(path, method.toUpperCase(), schema && example(spec, schema)));
  node.append(head, inside);
  return node;
}

fetch('/openapi.json').then(answer => answer.json()).then(spec => {
  const main = document.getElementById('routes');
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, about] of Object.entries(methods)) {
      main.append(route(spec, path, method, about));
    }
  }
  main.removeAttribute('aria-busy');
});

// Tables as the server sends them (nodes/page/columns.py): a list for each column.

function spread(column) {
  if (Array.isArray(column)) return column;
  if (!column.fields) return column.index.map((place) => column.values[place]);
  const objects = rows(column.fields).values();
  return spread(column.present).map((present) => (present ? objects.next().value : null));
}

/** The rows of a table, as objects. */
export function rows(columns) {
  const lists = Object.entries(columns).map(([key, column]) => [key, spread(column)]);
  const count = lists.length ? lists[0][1].length : 0;
  return Array.from({ length: count }, (_, i) => Object.fromEntries(lists.map(([key, list]) => [key, list[i]])));
}

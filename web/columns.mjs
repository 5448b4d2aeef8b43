// Tables as the server sends them (nodes/page/columns.py): a list for each column.

const spread = (column) => (Array.isArray(column) ? column : column.index.map((place) => column.values[place]));

/** The rows of a table, as objects. */
export function rows(columns) {
  const lists = Object.entries(columns).map(([key, column]) => [key, spread(column)]);
  const count = lists.length ? lists[0][1].length : 0;
  return Array.from({ length: count }, (_, i) => Object.fromEntries(lists.map(([key, list]) => [key, list[i]])));
}

// report.js - tables sort by a click on a column's head; without it the page reads the same
document.querySelectorAll('table.sortable').forEach(function (table) {
  var heads = Array.from(table.querySelectorAll('th'));
  heads.forEach(function (head, column) {
    head.querySelector('button').addEventListener('click', function () {
      var down = head.getAttribute('aria-sort') === 'ascending';
      heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      var numeric = head.classList.contains('number');
      function key(row) {
        var cell = row.cells[column];
        if (!numeric) return cell.textContent;
        return cell.dataset.value === undefined ? NaN : parseFloat(cell.dataset.value);
      }
      function compare(a, b) {
        var x = key(a), y = key(b);
        if (numeric) {
          if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // empty cells stay last
          return down ? y - x : x - y;
        }
        return down ? y.localeCompare(x) : x.localeCompare(y);
      }
      var body = table.tBodies[0];
      Array.from(body.rows).sort(compare).forEach(function (row) { body.appendChild(row); });
    });
  });
});

"""Tools for operators: doctor, cost, benchmarks, CDN, charts and the demo."""

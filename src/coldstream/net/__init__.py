"""HTTP: its grammar, the connection that receives chunks, TLS, proxies, and when a request is retried."""

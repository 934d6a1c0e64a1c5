"""HTTP/1.1 of visitors: heads are read once, by httptools, and written anew; bodies pass as they came."""

//! ZooKeeper's own bytes, read and reproduced bit for bit. How each file was made is told beside
//! it, in `fixtures/`.

mod disk;

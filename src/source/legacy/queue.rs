//! The keys of a page, packed. As vectors of strings a key of one number takes more than a hundred bytes, and a page, of which two are worked
//! on at once, has up to a hundred thousand.

use super::RowKey;

/// Keys that wait, first in, first out. All have the same number of columns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyQueue {
    /// What stands in each column of each key, one after the other.
    texts: String,
    /// Where each of these ends.
    ends: Vec<usize>,
    columns: usize,
    /// So many keys at the front are done.
    done: usize,
}

impl KeyQueue {
    /// At the end.
    pub fn push(&mut self, key: &RowKey) {
        debug_assert!(self.ends.is_empty() || self.columns == key.0.len(), "keys of one table");
        self.columns = key.0.len();
        for text in &key.0 {
            self.texts.push_str(text);
            self.ends.push(self.texts.len());
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.ends.len() / self.columns.max(1) - self.done
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first ones, so many or as many as there are. They stay.
    pub fn first(&self, at_most: usize) -> Vec<RowKey> {
        let keys = self.done..self.done + at_most.min(self.len());
        keys.map(|key| RowKey((0..self.columns).map(|n| self.text(key * self.columns + n).to_owned()).collect()))
            .collect()
    }

    /// The first ones are done.
    pub fn done(&mut self, keys: usize) {
        self.done += keys.min(self.len());
    }

    fn text(&self, at: usize) -> &str {
        let begin = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.texts[begin..self.ends[at]]
    }
}

impl FromIterator<RowKey> for KeyQueue {
    fn from_iter<T: IntoIterator<Item = RowKey>>(keys: T) -> KeyQueue {
        let mut queue = KeyQueue::default();
        queue.extend(keys);
        queue
    }
}

impl Extend<RowKey> for KeyQueue {
    fn extend<T: IntoIterator<Item = RowKey>>(&mut self, keys: T) {
        keys.into_iter().for_each(|key| self.push(&key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_as_they_went() {
        let key = |texts: [&str; 2]| RowKey(texts.map(str::to_owned).to_vec());
        let keys = [["a", "1"], ["", ""], ["größer", "-2"], ["b", ""]].map(key);
        let mut queue: KeyQueue = keys[..3].iter().cloned().collect();
        assert_eq!(queue.len(), 3);
        assert_eq!(queue.first(2), keys[..2]);
        assert_eq!(queue.first(2), keys[..2], "they stay until they are done");
        queue.done(2);
        queue.push(&keys[3]);
        assert_eq!(queue.first(9), keys[2..]);
        queue.done(9);
        assert!(queue.is_empty());
        assert_eq!(queue.first(1), []);
        assert!(KeyQueue::default().is_empty());
    }
}

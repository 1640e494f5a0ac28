//! The keys of a page, packed. As vectors of strings a key of one number takes more than a hundred bytes, and a page, of which two are worked
//! on at once, has up to a hundred thousand.

use super::RowKey;

/// Keys that wait, first in, first out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyQueue {
    /// What stands in each column of each key, one after the other.
    texts: String,
    /// Where each of these ends.
    text_ends: Vec<usize>,
    /// How many of these ends lie before the end of each key.
    key_ends: Vec<usize>,
    /// So many keys at the front are done.
    done: usize,
}

impl KeyQueue {
    /// At the end.
    pub fn push(&mut self, key: &RowKey) {
        for text in &key.0 {
            self.texts.push_str(text);
            self.text_ends.push(self.texts.len());
        }
        self.key_ends.push(self.text_ends.len());
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.key_ends.len() - self.done
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first ones, so many or as many as there are. They stay.
    pub fn first(&self, at_most: usize) -> Vec<RowKey> {
        (self.done..self.done + at_most.min(self.len())).map(|key| self.key(key)).collect()
    }

    /// The first ones are done. Of what is, never more than half is kept: keys that come again and again would else pile up.
    pub fn done(&mut self, keys: usize) {
        self.done += keys.min(self.len());
        if self.done * 2 <= self.key_ends.len() {
            return;
        }
        let texts = before(&self.key_ends, self.done);
        let bytes = before(&self.text_ends, texts);
        self.texts.drain(..bytes);
        self.text_ends.drain(..texts);
        self.key_ends.drain(..self.done);
        self.text_ends.iter_mut().for_each(|end| *end -= bytes);
        self.key_ends.iter_mut().for_each(|end| *end -= texts);
        self.done = 0;
    }

    fn key(&self, at: usize) -> RowKey {
        let texts = before(&self.key_ends, at)..self.key_ends[at];
        RowKey(texts.map(|text| self.texts[before(&self.text_ends, text)..self.text_ends[text]].to_owned()).collect())
    }
}

/// Where the n-th of what ends there begins.
fn before(ends: &[usize], n: usize) -> usize {
    if n == 0 { 0 } else { ends[n - 1] }
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
        let mut queue = KeyQueue::default();
        queue.extend(keys[..3].iter().cloned());
        assert_eq!(queue.len(), 3);
        assert_eq!(queue.first(2), keys[..2]);
        assert_eq!(queue.first(2), keys[..2], "they stay until they are done");
        queue.done(2);
        queue.push(&keys[3]);
        // An entity's key may have had another number of columns when a row of it was left out.
        queue.push(&RowKey(vec!["alone".into()]));
        assert_eq!(queue.first(2), keys[2..]);
        queue.done(2);
        assert_eq!(queue.first(9), [RowKey(vec!["alone".into()])]);
        queue.done(9);
        assert!(queue.is_empty());
        assert_eq!(queue.first(1), []);
    }

    #[test]
    fn keys_that_come_again_and_again_do_not_pile_up() {
        let mut queue = KeyQueue::default();
        queue.extend((0..100).map(|n: u32| RowKey(vec![n.to_string()])));
        for _ in 0..10_000 {
            let again = queue.first(50);
            queue.done(50);
            queue.extend(again);
        }
        assert_eq!(queue.len(), 100);
        assert!(queue.key_ends.len() <= 200 && queue.texts.len() <= 1000, "{} keys are held", queue.key_ends.len());
    }
}

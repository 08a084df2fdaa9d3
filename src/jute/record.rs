//! The macro that turns a listing much like `zookeeper.jute`'s into types and their codecs.
//!
//! ```text
//! record! {
//!     pub struct SetDataRequest<'a> { path: Text<'a>, data: Buffer<'a>, version: i32 }
//! }
//! ```

use std::borrow::Cow;

use super::{Malformed, Reader, Write as _};

/// `ustring`: `None` is null.
pub type Text<'a> = Option<Cow<'a, str>>;
/// `buffer`: `None` is null.
pub type Buffer<'a> = Option<&'a [u8]>;
/// `vector`: `None` is null.
pub type Vector<T> = Option<Vec<T>>;

/// Anything with a place in a record.
pub trait Record<'a>: Sized {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed>;
    fn write(&self, out: &mut Vec<u8>);
}

impl Record<'_> for bool {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.bool()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_bool(*self);
    }
}

impl Record<'_> for i32 {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.i32()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_i32(*self);
    }
}

impl Record<'_> for i64 {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        reader.i64()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_i64(*self);
    }
}

impl<'a> Record<'a> for Buffer<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.buffer()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_buffer(*self);
    }
}

impl<'a> Record<'a> for Text<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        reader.text()
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_buffer(self.as_deref().map(str::as_bytes));
    }
}

impl<'a, T: Record<'a>> Record<'a> for Vector<T> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let Some(count) = reader.count()? else { return Ok(None) };
        let mut elements = Vec::new();
        for _ in 0..count {
            elements.push(T::read(reader)?);
        }
        Ok(Some(elements))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_count(self.as_ref().map(Vec::len));
        for element in self.iter().flatten() {
            element.write(out);
        }
    }
}

macro_rules! record {
    ($($(#[$meta:meta])* pub struct $name:ident $(<$life:lifetime>)? {
        $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)?
    })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name $(<$life>)? {
            $($(#[$field_meta])* pub $field: $type),*
        }

        $crate::jute::record::record!(@impl $name $(<$life>)? { $($field: $type),* });
    )*};
    (@impl $name:ident <$life:lifetime> { $($field:ident: $type:ty),* }) => {
        impl<$life> $crate::jute::record::Record<$life> for $name<$life> {
            fn read(
                reader: &mut $crate::jute::Reader<$life>,
            ) -> Result<Self, $crate::jute::Malformed> {
                $(let $field = <$type as $crate::jute::record::Record<$life>>::read(reader)?;)*
                Ok($name { $($field),* })
            }

            fn write(&self, out: &mut Vec<u8>) {
                $($crate::jute::record::Record::write(&self.$field, out);)*
            }
        }
    };
    (@impl $name:ident { $($field:ident: $type:ty),* }) => {
        impl $crate::jute::record::Record<'_> for $name {
            fn read(
                reader: &mut $crate::jute::Reader<'_>,
            ) -> Result<Self, $crate::jute::Malformed> {
                $(let $field = <$type as $crate::jute::record::Record<'_>>::read(reader)?;)*
                Ok($name { $($field),* })
            }

            fn write(&self, out: &mut Vec<u8>) {
                $($crate::jute::record::Record::write(&self.$field, out);)*
            }
        }
    };
}
pub(crate) use record;

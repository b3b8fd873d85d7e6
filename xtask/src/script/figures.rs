
/// The number of figures saved so far.
static FIGURES: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Saves a figure to a numbered file. Method resolution prefers this to `NotAFigure`, which needs
/// another reference.
trait SaveFigure {
    fn save_figure(&self);
}

impl SaveFigure for mnist_notebook_support::notebook::Figure {
    fn save_figure(&self) {
        let folder = std::env::args_os().nth(1).unwrap_or_else(|| "{name}_files".into());
        let number = 1 + FIGURES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::path::Path::new(&folder).join(format!("figure_{number:02}.svg"));
        let saved = std::fs::create_dir_all(&folder).map_err(Into::into);
        match saved.and_then(|()| Ok::<_, Box<dyn std::error::Error>>(self.save(&path)?)) {
            Ok(()) => println!("figure: {}", path.display()),
            Err(error) => eprintln!("{}: {error}", path.display()),
        }
    }
}

trait NotAFigure {
    fn save_figure(&self) {}
}

impl<T> NotAFigure for &T {}

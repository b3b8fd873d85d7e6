//! The attribute [`macro@jit`].
//!
//! It names `::mnist_notebook_support`, so it works where that is a dependency.

use proc_macro::{Delimiter, TokenStream, TokenTree};

/// The files with the tutorial's own steps.
const TUTORIAL: [&str; 2] = [
    include_str!("../../../mnist-notebook-support/src/train_step.rs"),
    include_str!("../../../mnist-notebook-support/src/train_epoch.rs"),
];

/// What a GPU does in place of the tutorial's own functions, and what it has to know.
///
/// By the module, an epoch knows whether its step is the tutorial's or one that wraps it.
const ON_GPU: [(&str, &str); 3] = [
    (
        "train_step",
        "(model, state, batch, cross_entropy_loss, compute_metrics, ::core::module_path!())",
    ),
    ("eval_step", "(model, variables, batch, compute_metrics)"),
    ("train_epoch", "(model, state, (train_ds, batch_size), epoch, rng, train_step)"),
];

/// Runs the function below it with the networks in it compiled: `@jax.jit`.
///
/// Networks are planned when they are first evaluated, and the plan is replayed from then on. All
/// else in the function (its loss, its update) runs as it is written, every time.
/// [`disable_jit`](../linen/fn.disable_jit.html) runs it without plans.
///
/// On an NVIDIA GPU, where launching many small operations takes longer than the network, the
/// tutorial's own step is one recording with loss, gradients and update. It is known by its text,
/// its loss and its metrics by what they give for examples. A step that differs in any of them runs
/// as it is written.
#[proc_macro_attribute]
pub fn jit(_: TokenStream, function: TokenStream) -> TokenStream {
    let on_gpu = functions(function.clone()).pop().and_then(|(name, text)| {
        let (_, arguments) = ON_GPU.into_iter().find(|(known, _)| *known == name)?;
        let is_tutorials = |file| functions(parse(file)).contains(&(name.clone(), text.clone()));
        TUTORIAL.into_iter().any(is_tutorials).then(|| {
            let call = format!("::mnist_notebook_support::on_gpu::{name}{arguments}");
            format!("if let Some(result) = {call}? {{ return Ok(result); }}")
        })
    });
    let mut tokens = function.into_iter().collect::<Vec<_>>();
    let Some(TokenTree::Group(body)) =
        tokens.pop_if(|token| matches!(token, TokenTree::Group(body) if is_block(body)))
    else {
        return parse("compile_error!(\"`#[jit]` stands above a function\");");
    };
    let mut compiled = parse(&on_gpu.unwrap_or_default());
    let closure = parse("||").into_iter().chain([TokenTree::Group(body)]).collect();
    compiled.extend(parse("::mnist_notebook_support::linen::jitted"));
    compiled.extend([group(Delimiter::Parenthesis, closure)]);
    tokens.push(group(Delimiter::Brace, compiled));
    tokens.into_iter().collect()
}

fn is_block(group: &proc_macro::Group) -> bool {
    group.delimiter() == Delimiter::Brace
}

fn group(delimiter: Delimiter, tokens: TokenStream) -> TokenTree {
    TokenTree::Group(proc_macro::Group::new(delimiter, tokens))
}

fn parse(text: &str) -> TokenStream {
    text.parse().expect("the macro's own text is Rust")
}

/// The functions among tokens: the name and the text of each, from `fn` to the end of its body,
/// without spaces, so that neither line breaks nor comments count.
fn functions(tokens: TokenStream) -> Vec<(String, String)> {
    let tokens = tokens.into_iter().collect::<Vec<_>>();
    let is_body = |token: &TokenTree| matches!(token, TokenTree::Group(body) if is_block(body));
    let function = |start: usize| {
        let length = tokens[start..].iter().position(is_body)?;
        let function = tokens[start..=start + length].iter().cloned().collect::<TokenStream>();
        let text = function.to_string().split_whitespace().collect();
        Some((tokens.get(start + 1)?.to_string(), text))
    };
    let starts = (0..tokens.len()).filter(|start| tokens[*start].to_string() == "fn");
    starts.filter_map(function).collect()
}

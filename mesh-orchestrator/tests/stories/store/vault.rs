//! Secrets in a store: encrypted, revealed by name, and re-encrypted under a new key.

use std::{collections::BTreeMap, fs, sync::Arc};

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{
    objects::Timestamp,
    secrets::{KeyRing, Kind, Plaintext, Vault, VaultError},
    store::Transaction,
};
use mesh_orchestrator_testing::run;

use super::{
    Story,
    subject::{Fresh, Subject},
};

pub(super) fn stories() -> Vec<Story> {
    vec![
        ("secrets_are_stored_encrypted_and_revealed_by_name", secrets),
        ("keys_are_rotated_without_losing_a_secret", rotation),
        (
            "a_key_is_replaced_on_several_nodes_while_they_work",
            rotation_in_two_steps,
        ),
        ("the_tunnels_secret_is_made_once_and_replaced_when_asked", tunnel),
        ("a_lost_key_file_is_not_replaced_by_a_new_one", lost_key),
    ]
}

fn secret(text: &str) -> Plaintext {
    Plaintext::new(text.as_bytes().to_vec())
}

fn secrets(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let vault = Vault::open(Arc::clone(store), &folder.path().join("keys.json"), Timestamp(1)).await?;
        let labels = BTreeMap::from([("tier".to_owned(), "db".to_owned())]);
        vault
            .create(
                Kind::Secret,
                "password",
                labels.clone(),
                &secret("hunter2"),
                Timestamp(2),
            )
            .await?;
        vault
            .create(
                Kind::Config,
                "password",
                labels.clone(),
                &secret("not so secret"),
                Timestamp(3),
            )
            .await?;
        let again = vault
            .create(
                Kind::Secret,
                "password",
                labels.clone(),
                &secret("x"),
                Timestamp(2),
            )
            .await;
        ensure!(matches!(again, Err(VaultError::Exists { .. })), "{again:?}");
        ensure!(vault.reveal(Kind::Secret, "password").await? == secret("hunter2"));
        ensure!(vault.reveal(Kind::Config, "password").await? == secret("not so secret"));
        let record = vault.inspect(Kind::Secret, "password").await?;
        ensure!((record.labels, record.size, record.created_at) == (labels, 7, Timestamp(2)));
        vault
            .replace(
                Kind::RegistryCredential,
                "registry:5000",
                &secret("a"),
                Timestamp(4),
            )
            .await?;
        vault
            .replace(
                Kind::RegistryCredential,
                "registry:5000",
                &secret("b"),
                Timestamp(5),
            )
            .await?;
        ensure!(vault.reveal(Kind::RegistryCredential, "registry:5000").await? == secret("b"));
        let too_large = Plaintext::new(vec![0; Kind::Secret.max_bytes() + 1]);
        let refused = vault
            .create(Kind::Secret, "large", BTreeMap::new(), &too_large, Timestamp(6))
            .await;
        ensure!(matches!(refused, Err(VaultError::TooLarge { .. })), "{refused:?}");
        let largest = Plaintext::new(vec![7; Kind::Config.max_bytes()]);
        vault
            .create(Kind::Config, "largest", BTreeMap::new(), &largest, Timestamp(6))
            .await?;
        ensure!(vault.reveal(Kind::Config, "largest").await? == largest);
        let names: Vec<String> = vault
            .list(Kind::Config)
            .await?
            .into_iter()
            .map(|record| record.name)
            .collect();
        ensure!(names == ["largest", "password"], "{names:?}");
        // No plaintext is in the store or in debug output.
        for entry in store.snapshot().await?.entries().await? {
            let value = String::from_utf8_lossy(&entry.value);
            ensure!(
                !value.contains("hunter2") && !value.contains("aHVudGVyM"),
                "{}",
                entry.key
            );
        }
        ensure!(!format!("{vault:?}").contains("hunter2"));
        // Copied to another name, it cannot be decrypted.
        let stolen = store
            .get(&"/secrets/password".parse()?)
            .await?
            .context("the secret is missing")?;
        store
            .commit(Transaction::new().put("/secrets/mine".parse()?, stolen.value))
            .await?;
        let refused = vault.reveal(Kind::Secret, "mine").await;
        ensure!(matches!(refused, Err(VaultError::KeyFile(_))), "{refused:?}");
        vault.remove(Kind::Secret, "password").await?;
        let gone = vault.reveal(Kind::Secret, "password").await;
        ensure!(matches!(gone, Err(VaultError::Missing { .. })), "{gone:?}");
        Ok(())
    })
}

fn tunnel(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("keys.json");
        let vault = Vault::open(Arc::clone(store), &path, Timestamp(1)).await?;
        ensure!(vault.tunnel_secret().await?.is_none());
        let (one, other) = tokio::join!(
            vault.ensure_tunnel_secret(Timestamp(2)),
            vault.ensure_tunnel_secret(Timestamp(2))
        );
        let first = one?.context("there is none")?;
        ensure!(other? == Some(first.clone()), "two nodes have made one each");
        ensure!(first.expose().len() == 32 && first.expose().iter().any(|byte| *byte != 0));
        vault.rotate_tunnel_secret(Timestamp(3)).await?;
        let second = vault.ensure_tunnel_secret(Timestamp(4)).await?;
        ensure!(second.is_some() && second != Some(first));
        Ok(())
    })
}

fn rotation(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let (path, copy) = (folder.path().join("keys.json"), folder.path().join("copy.json"));
        let vault = Vault::open(Arc::clone(store), &path, Timestamp(1)).await?;
        for name in ["a", "b", "c"] {
            vault
                .create(Kind::Secret, name, BTreeMap::new(), &secret(name), Timestamp(2))
                .await?;
        }
        fs::copy(&path, &copy)?;
        let other = Vault::open(Arc::clone(store), &copy, Timestamp(3)).await?;
        vault.rotate(Timestamp(4), false).await?;
        vault
            .create(Kind::Secret, "d", BTreeMap::new(), &secret("d"), Timestamp(5))
            .await?;
        ensure!(vault.rotate(Timestamp(6), true).await?.1 == Some(4));
        ensure!(vault.reencrypt().await? == 0);
        for name in ["a", "b", "c", "d"] {
            ensure!(vault.reveal(Kind::Secret, name).await? == secret(name));
        }
        ensure!(
            KeyRing::load(&path)?.context("no key file")?.key_ids().len() == 1,
            "the old key is still there"
        );
        // A node without the new key reports which one is missing, until it has the file.
        let refused = other.reveal(Kind::Secret, "a").await;
        ensure!(
            refused.is_err_and(|error| format!("{:#}", anyhow::Error::from(error)).contains("copy the file"))
        );
        fs::copy(&path, &copy)?;
        other.reload()?;
        ensure!(other.reveal(Kind::Secret, "a").await? == secret("a"));
        Ok(())
    })
}

fn rotation_in_two_steps(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let (path, copy) = (folder.path().join("keys.json"), folder.path().join("copy.json"));
        let one = Vault::open(Arc::clone(store), &path, Timestamp(1)).await?;
        let create = async |vault: &Vault, name: &str| {
            let value = secret(name);
            let made = vault.create(Kind::Secret, name, BTreeMap::new(), &value, Timestamp(2));
            made.await
        };
        create(&one, "a").await?;
        fs::copy(&path, &copy)?;
        let other = Vault::open(Arc::clone(store), &copy, Timestamp(1)).await?;
        let refused = one.rotate(Timestamp(2), true).await;
        ensure!(matches!(refused, Err(VaultError::NotPrepared)), "{refused:?}");
        let (key, encrypted) = one.rotate(Timestamp(2), false).await?;
        ensure!(encrypted.is_none());
        ensure!(
            one.rotate(Timestamp(3), false).await?.0 == key,
            "a second key was made"
        );
        // Until all have the key, it encrypts nothing that another node could not read.
        create(&one, "b").await?;
        ensure!(other.reveal(Kind::Secret, "b").await? == secret("b"));
        fs::copy(&path, &copy)?;
        ensure!(one.rotate(Timestamp(4), true).await? == (key.clone(), Some(2)));
        // The other node takes the new key from its file, to read and to write, by itself.
        ensure!(other.reveal(Kind::Secret, "a").await? == secret("a"));
        create(&other, "c").await?;
        ensure!(one.reveal(Kind::Secret, "c").await? == secret("c"));
        ensure!(KeyRing::load(&path)?.context("no key file")?.key_ids() == [key]);
        Ok(())
    })
}

fn lost_key(subject: &Subject) -> Result<()> {
    run(async {
        let Fresh { store, .. } = &subject.fresh().await?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("keys.json");
        let vault = Vault::open(Arc::clone(store), &path, Timestamp(1)).await?;
        vault
            .create(Kind::Secret, "a", BTreeMap::new(), &secret("a"), Timestamp(2))
            .await?;
        drop(vault);
        let elsewhere = folder.path().join("elsewhere.json");
        let refused = Vault::open(Arc::clone(store), &elsewhere, Timestamp(3)).await;
        ensure!(matches!(refused, Err(VaultError::NoKey { .. })), "{refused:?}");
        ensure!(!elsewhere.exists(), "a new key file was made");
        KeyRing::create(&elsewhere, Timestamp(3))?;
        let refused = Vault::open(Arc::clone(store), &elsewhere, Timestamp(3)).await;
        ensure!(matches!(refused, Err(VaultError::NoKey { .. })), "{refused:?}");
        let vault = Vault::open(Arc::clone(store), &path, Timestamp(4)).await?;
        ensure!(vault.reveal(Kind::Secret, "a").await? == secret("a"));
        Ok(())
    })
}
